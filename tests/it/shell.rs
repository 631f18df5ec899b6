//! The shell, on a terminal of its own (Python's pty).

use crate::support::{example, python, root, run_python, text};

const SESSION: &str = r#"
import os, pty, select, sys, time
binary, folder, cache = sys.argv[1:4]
os.chdir(folder)
os.environ["SPARSE_CACHE"] = cache
os.environ["TERM"] = "xterm"
pid, fd = pty.fork()
if pid == 0:
    os.execv(binary, [binary, "sql"])
seen = b""
def until(text, seconds=60):
    global seen
    end = time.time() + seconds
    while text not in seen:
        if time.time() > end:
            raise SystemExit(f"no {text!r} in {seen!r}")
        ready, _, _ = select.select([fd], [], [], 0.2)
        if ready:
            seen += os.read(fd, 65536)
    seen = seen[seen.index(text) + len(text):]
def send(text):
    os.write(fd, text.encode())
until(b"sparse> ")
# As the README shows it, with the design's default output.
send("SELECT * FROM sparse_compress('base', 'ft');\r")
until(b"created")
until(b"rows in")
until(b"sparse> ")
# A statement of two lines, completed by Tab.
send("SELECT count(*) AS tensors FROM sparse_tens\t'base')\r")
until(b"base')")
send(";\r")
until(b"tensors")
until(b"| 38")
until(b"sparse> ")
send("SELECT * FROM nowhere;\r")
until(b"error: ")
until(b"sparse> ")
send(".format json\r")
until(b"sparse> ")
send("SELECT 1 AS one;\r")
until(b'{"one":1}')
until(b"sparse> ")
send(".quit\r")
try:
    while os.read(fd, 65536):
        pass
except OSError:
    pass
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
history = open(os.path.join(cache, "sql-history")).read()
assert "sparse_compress('base', 'ft')" in history
print("ok")
"#;

#[test]
fn a_session_on_a_terminal() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let link = |from: &str, to: &str| {
        let target = root().join("examples/models").join(from);
        std::os::unix::fs::symlink(target, work.path().join(to)).unwrap();
    };
    link("base", "base");
    link("sft", "ft");
    let cache = text(&work.path().join("cache"));
    let binary = env!("CARGO_BIN_EXE_sparse");
    let said = run_python(&python, SESSION, &[binary, &text(work.path()), &cache]);
    assert_eq!(said.trim(), "ok");
}

const PROGRESS: &str = r#"
import os, pty, sys
binary, base, finetune, delta, cache = sys.argv[1:6]
os.environ["SPARSE_CACHE"] = cache
os.environ["TERM"] = "xterm"
pid, fd = pty.fork()
if pid == 0:
    os.execv(binary, [binary, "compress", base, finetune, "-o", delta])
seen = b""
try:
    while chunk := os.read(fd, 65536):
        seen += chunk
except OSError:
    pass
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0, seen
print(seen.decode())
"#;

/// A bar on a terminal, with bytes and time left; `output_for_programs_is_plain` sees to the other case.
#[test]
fn progress_on_a_terminal() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let delta = text(&work.path().join("delta"));
    let cache = text(&work.path().join("cache"));
    let binary = env!("CARGO_BIN_EXE_sparse");
    let arguments = [binary, &example("base"), &example("sft"), &delta, &cache];
    let said = run_python(&python, PROGRESS, &arguments);
    assert!(said.contains(" MB") && said.contains("left"), "{said}");
    assert!(said.contains("ratio"), "{said}");
}
