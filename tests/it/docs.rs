//! Documentation that is generated is up to date, and examples do what they say.

use sparse_operators::{SparseConfig, docs, session_with};
use sparse_pipelines::{Params, Script};

use crate::support::{copy, root, sparse, stderr};

/// Each example of `docs/sql.md`, in order, in a session and scratch folder of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_sql_page_run() {
    std::env::set_current_dir(root()).unwrap();
    let examples = docs::examples();
    assert!(examples.len() > 15);
    for (name, statements) in examples {
        let work = tempfile::tempdir().unwrap();
        let config = SparseConfig {
            cache_dir: Some(work.path().join("cache")),
            offline: Some(true),
            ..SparseConfig::default()
        };
        let context = session_with(config);
        let tmp = work.path().join("tmp");
        std::fs::create_dir(&tmp).unwrap();
        let sql = statements.replace("{tmp}", tmp.to_str().unwrap());
        for stage in Script::parse(&sql, &Params::default()).unwrap().stages() {
            let statement = &stage.sql;
            let frame = context.sql(statement).await;
            let frame = frame.unwrap_or_else(|e| panic!("{name}: {statement}\n{e}"));
            let columns = frame.schema().fields().len();
            let batches = frame.collect().await;
            let batches = batches.unwrap_or_else(|e| panic!("{name}: {statement}\n{e}"));
            let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
            assert!(rows > 0 || columns == 0, "{name}: {statement}\nno rows");
        }
    }
}

/// `SHOW FUNCTIONS` and the page list the same functions.
#[tokio::test]
async fn show_functions_lists_them() {
    let context = sparse_operators::session();
    for function in sparse_udfs::functions() {
        let name = function.name();
        let sql =
            format!("SELECT * FROM information_schema.routines WHERE routine_name = '{name}'");
        let rows = context.sql(&sql).await.unwrap().count().await.unwrap();
        assert!(rows > 0, "{name}");
    }
    let page = std::fs::read_to_string(root().join("docs/sql.md")).unwrap();
    for function in sparse_operators::functions::all() {
        let name = function.spec().name;
        assert!(context.table_function(name).is_ok(), "{name}");
        assert!(page.contains(&format!("### {name}\n")), "{name}");
    }
}

/// Every relative link of the documentation leads somewhere.
#[test]
fn links_lead_somewhere() {
    let pages = [
        "README.md",
        "CONTRIBUTING.md",
        "FORMAT.md",
        "CHANGELOG.md",
        "docs/sql.md",
        "docs/cli.md",
        "docs/format-codec.md",
        "docs/format-dataset.md",
        "docs/gpu.md",
        "docs/pipelines.md",
        "docs/quality.md",
        "examples/README.md",
        "examples/schedulers/README.md",
        "monitoring/README.md",
    ];
    for page in pages {
        let path = root().join(page);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{page}: {e}"));
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap().split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(
                path.parent().unwrap().join(target).exists(),
                "{page} links to {target}, which is not there"
            );
        }
    }
}

/// The SQL of the README runs as it is written.
#[tokio::test(flavor = "multi_thread")]
async fn the_sql_of_the_readme_runs() {
    std::env::set_current_dir(root()).unwrap();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let context = sparse_operators::session();
    let mut ran = 0;
    for block in readme.split("```sql\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for stage in Script::parse(block, &Params::default()).unwrap().stages() {
            let statement = &stage.sql;
            // The first one names models that every user has in mind and nobody has; the shell's test runs it.
            if statement.contains("sparse_compress('base', 'ft')") {
                continue;
            }
            let frame = context.sql(statement).await;
            let frame = frame.unwrap_or_else(|e| panic!("{statement}\n{e}"));
            assert!(frame.count().await.unwrap() > 0, "{statement}");
            ran += 1;
        }
    }
    assert!(ran >= 3);
}

/// The commands of the README run as they are written, in order, in a folder with the examples.
#[test]
fn the_commands_of_the_readme_run() {
    let work = tempfile::tempdir().unwrap();
    copy(&root().join("examples"), &work.path().join("examples"));
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("## On the command line\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut ran = 0;
    for line in section.lines() {
        let Some(command) = line.strip_prefix("$ sparse ") else {
            continue;
        };
        let command = command.split('#').next().unwrap().trim();
        // The daemon runs until somebody stops it, as the tests of pipelines do.
        if command.starts_with("pipeline serve") {
            continue;
        }
        let output = sparse(work.path())
            .current_dir(work.path())
            .args(command.split_whitespace())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "sparse {command}: {}",
            stderr(&output)
        );
        ran += 1;
    }
    assert!(ran >= 15, "{ran}");
}
