//! Telling people and programs how a run ended.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::spec::{Notification, Pipeline, When};
use crate::summary::{RunSummary, Status};

/// The longest a webhook or command may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Tells everybody who wants to know. What fails is logged: a run is not undone because nobody could be told.
pub(crate) async fn notify(pipeline: &Pipeline, summary: &RunSummary, error: Option<&str>) {
    let checks_failed = summary
        .checks
        .iter()
        .any(|check| check.failed_rows > 0 || check.error.is_some());
    let document = serde_json::json!({
        "pipeline": summary.pipeline,
        "run": summary.run,
        "status": summary.status,
        "seconds": summary.seconds,
        "error": error,
        "stages": summary.stages,
        "checks": summary.checks,
    });
    for notification in &pipeline.notify {
        let wanted = notification.on.iter().any(|when| match when {
            When::Success => summary.status == Status::Succeeded,
            When::Failure => matches!(summary.status, Status::Failed | Status::Cancelled),
            When::Check => checks_failed,
        });
        if !wanted {
            continue;
        }
        let told = tokio::time::timeout(LIMIT, tell(notification, &document)).await;
        let problem = match told {
            Ok(Ok(())) => continue,
            Ok(Err(problem)) => problem,
            Err(_) => format!("it took longer than {} s", LIMIT.as_secs()),
        };
        let problem = pipeline.redact(&problem);
        tracing::warn!(
            pipeline = summary.pipeline,
            run = summary.run,
            "a notification failed: {problem}"
        );
    }
}

async fn tell(notification: &Notification, document: &serde_json::Value) -> Result<(), String> {
    if let Some(url) = &notification.webhook {
        return post(url, document).await;
    }
    let Some((program, arguments)) = notification.command.split_first() else {
        return Ok(());
    };
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // A program that does not read is fine.
        let _ = input.write_all(document.to_string().as_bytes()).await;
    }
    let status = child.wait().await.map_err(failed)?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{program} ended with {status}")),
    }
}

/// Posts a JSON document. The URL, which may hold a secret, is in no error.
pub(crate) async fn post(url: &str, document: &serde_json::Value) -> Result<(), String> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .build()
        .map_err(|error| error.without_url().to_string())?;
    let answer = client
        .post(url)
        .json(document)
        .send()
        .await
        .map_err(|error| format!("the request failed: {}", error.without_url()))?;
    match answer.status().is_success() {
        true => Ok(()),
        false => Err(format!("the server answered {}", answer.status())),
    }
}
