//! Deltas and models in an object store: a real S3 server (moto) on this machine.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{assert_same, example, python, run_python, sparse, stderr, text};

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(python: &str) -> (Server, u16) {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server = Command::new(python)
        .args([
            "-c",
            "import sys; from moto.server import main; main(sys.argv[1:])",
        ])
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server(server);
    let end = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < end, "moto did not start");
        std::thread::sleep(Duration::from_millis(100));
    }
    (server, port)
}

const PUT: &str = r#"
import os, sys, boto3
s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret")
s3.create_bucket(Bucket="bucket")
for model in sys.argv[2:]:
    for name in os.listdir(model):
        s3.upload_file(os.path.join(model, name), "bucket", f"models/{os.path.basename(model)}/{name}")
"#;

#[test]
fn models_and_deltas_in_s3() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let (_server, port) = serve(&python);
    let endpoint = format!("http://127.0.0.1:{port}");
    run_python(
        &python,
        PUT,
        &[
            &endpoint,
            &example("base"),
            &example("sft"),
            &example("lora-merged"),
        ],
    );
    let run = |arguments: &[&str]| {
        sparse(work.path())
            .args(arguments)
            .env_remove("HF_HUB_OFFLINE")
            .env("AWS_ENDPOINT", &endpoint)
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "not-to-be-shown")
            .output()
            .unwrap()
    };
    let ok = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let (base, sft) = ("s3://bucket/models/base", "s3://bucket/models/sft");
    let delta = "s3://bucket/deltas/sft";
    assert!(ok(&["compress", base, sft, "-o", delta]).starts_with("created"));
    // The manifest is put only where there is none: the same delta is found, another is refused.
    assert!(ok(&["compress", base, sft, "-o", delta]).starts_with("exists"));
    let other = run(&[
        "compress",
        base,
        "s3://bucket/models/lora-merged",
        "-o",
        delta,
    ]);
    assert_eq!(other.status.code(), Some(2), "{}", stderr(&other));
    assert!(stderr(&other).contains("lora-merged"), "{}", stderr(&other));
    let again = work.path().join("again");
    ok(&["reconstruct", base, delta, "-o", &text(&again)]);
    assert_same(example("sft").as_ref(), &again);
    ok(&["verify", delta, "--base", &example("base")]);
    // An approximation, its adapter in a folder of its own, and an adapter's artifact.
    let svd = "s3://bucket/svd/sft";
    let approximate = ["svd-compress", base, sft, "-o", svd, "--rank", "4"];
    assert!(ok(&approximate).starts_with("created"));
    assert!(ok(&approximate).starts_with("exists"));
    let other = run(&["svd-compress", base, sft, "-o", svd, "--rank", "8"]);
    assert_eq!(other.status.code(), Some(2), "{}", stderr(&other));
    assert!(stderr(&other).contains("rank 8"), "{}", stderr(&other));
    ok(&["verify", svd, "--base", &example("base")]);
    let model = work.path().join("approximate");
    ok(&["svd-reconstruct", base, svd, "-o", &text(&model)]);
    assert!(model.join("model.safetensors").exists());
    let packed = "s3://bucket/adapters/lora";
    ok(&["compress-adapter", base, &example("lora"), "-o", packed]);
    let merged = work.path().join("merged");
    ok(&["reconstruct", base, packed, "-o", &text(&merged), "--merge"]);
    let (found, wanted) = (text(&merged), example("lora-merged"));
    ok(&["diff", &found, &wanted, "--fail-on", "any"]);
    let absent = run(&["info", "s3://bucket/deltas/none"]);
    assert_eq!(absent.status.code(), Some(6), "{}", stderr(&absent));
    assert!(!stderr(&absent).contains("not-to-be-shown"));
}
