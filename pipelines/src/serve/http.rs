//! HTTP: metrics, health, the API, the page.
//!
//! Whoever reaches the address may read; what changes something needs the token. A daemon on loopback answers only requests
//! that were sent to it by that name, so that no page of another site reads it through a visitor's browser.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::{Path, Query, Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use datafusion::common::runtime::SpawnedTask;
use serde::Deserialize;
use serde_json::json;

use super::{Daemon, MAX_QUEUE, page};
use crate::metrics::Metrics;
use crate::schedule;
use crate::state::{StateError, now_ms};
use crate::summary::Status;

/// The most runs one answer holds.
const MAX_RUNS: u32 = 1000;

/// The most tries of items one answer holds.
const MAX_ITEMS: u32 = 10_000;

/// The most lines of a log one answer holds.
const MAX_LINES: u32 = 10_000;

type App = Shared<Arc<Daemon>>;

pub(super) fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/runs/{run}", get(run_page))
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .route("/api/pipelines", get(pipelines))
        .route("/api/pipelines/{name}/runs", post(start))
        .route("/api/runs", get(runs))
        .route("/api/runs/{run}", get(run))
        .route("/api/runs/{run}/items", get(items))
        .route("/api/runs/{run}/logs", get(logs))
        .route("/api/runs/{run}/cancel", post(cancel))
        .layer(middleware::from_fn_with_state(Arc::clone(&daemon), guard))
        .with_state(daemon)
}

/// What went wrong with a request.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<StateError> for Refused {
    fn from(error: StateError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

fn missing(what: &str) -> Refused {
    Refused(StatusCode::NOT_FOUND, format!("{what} is not known here"))
}

/// Headers of every answer, and the check of the name a request was sent to.
async fn guard(Shared(daemon): App, request: Request, next: Next) -> Response {
    if daemon.options.listen.ip().is_loopback() && !local_name(request.headers()) {
        let message =
            "this server answers requests to localhost only; start it with --listen for others"
                .to_owned();
        return Refused(StatusCode::FORBIDDEN, message).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn local_name(headers: &HeaderMap) -> bool {
    let Some(host) = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
    else {
        return true;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name == "localhost"
        || name
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// Whether a request may change something.
fn allowed(daemon: &Daemon, headers: &HeaderMap) -> Result<(), Refused> {
    let Some(token) = &daemon.options.token else {
        return Err(Refused(
            StatusCode::FORBIDDEN,
            "nothing can be changed over HTTP: start the server with --token-file or SPARSE_SERVE_TOKEN".to_owned(),
        ));
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    // Hashes are compared, in a time that does not depend on where they differ.
    match given {
        Some(given) if blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes()) => Ok(()),
        _ => Err(Refused(
            StatusCode::UNAUTHORIZED,
            "send the token: `Authorization: Bearer ...`".to_owned(),
        )),
    }
}

async fn health(Shared(daemon): App) -> Result<Response, Refused> {
    // The database is asked, so that a full or lost disk is seen.
    daemon.state.runs(None, 1)?;
    let mut problems = daemon.problems().clone();
    problems.extend(
        daemon
            .slots()
            .values()
            .filter_map(|slot| slot.problem.clone()),
    );
    let stopping = daemon.stopping.load(Ordering::Relaxed);
    let status = match stopping {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::OK,
    };
    let document =
        json!({ "status": if stopping { "stopping" } else { "ok" }, "problems": problems });
    Ok((status, Json(document)).into_response())
}

async fn metrics(Shared(daemon): App) -> Result<Response, Refused> {
    // A long history takes its time, and the cache has locks: not on the threads that answer others.
    let text = SpawnedTask::spawn_blocking(move || {
        let mut metrics = Metrics::new();
        metrics.history(&daemon.state, None)?;
        if let Some(cache) = &daemon.options.cache {
            match cache.get_stats() {
                Ok(stats) => metrics.cache(&stats, &cache.jobs()),
                Err(error) => tracing::warn!("the metrics of the cache: {error}"),
            }
        }
        Ok::<_, StateError>(metrics.encode())
    });
    let text = text.join_unwind().await.map_err(|error| {
        let message = format!("the metrics were not made: {error}");
        Refused(StatusCode::INTERNAL_SERVER_ERROR, message)
    })??;
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    Ok((kind, text).into_response())
}

async fn pipelines(Shared(daemon): App) -> Json<serde_json::Value> {
    let now = now_ms();
    let all: Vec<_> = daemon
        .slots()
        .values()
        .map(|slot| {
            let next = slot
                .pipeline
                .schedule
                .as_ref()
                .and_then(|s| schedule::next(s, now));
            json!({
                "pipeline": slot.pipeline.name,
                "description": slot.pipeline.description,
                "stages": slot.graph.order(),
                "running": slot.running.is_some(),
                "queued": slot.queue.len(),
                "next_ms": next,
                "problem": slot.problem,
            })
        })
        .collect();
    Json(all.into())
}

#[derive(Deserialize)]
struct Filter {
    pipeline: Option<String>,
    limit: Option<u32>,
}

async fn runs(Shared(daemon): App, Query(filter): Query<Filter>) -> Result<Response, Refused> {
    let limit = filter.limit.unwrap_or(50).min(MAX_RUNS);
    let runs = daemon.state.runs(filter.pipeline.as_deref(), limit)?;
    Ok(Json(runs).into_response())
}

async fn run(Shared(daemon): App, Path(id): Path<String>) -> Result<Response, Refused> {
    let Some(run) = daemon.state.run(&id)? else {
        // It was asked for, and waits.
        let (pipeline, asked) = daemon
            .state
            .waiting(&id)?
            .ok_or_else(|| missing("this run"))?;
        let run = json!({
            "run": asked.run,
            "pipeline": pipeline,
            "status": "queued",
            "trigger": asked.trigger,
            "scheduled_ms": asked.scheduled_ms,
        });
        return Ok(Json(json!({ "run": run, "stages": [] })).into_response());
    };
    let stages = daemon.state.stages(&run.run)?;
    Ok(Json(json!({ "run": run, "stages": stages })).into_response())
}

async fn items(Shared(daemon): App, Path(id): Path<String>) -> Result<Response, Refused> {
    let run = daemon.state.run(&id)?.ok_or_else(|| missing("this run"))?;
    Ok(Json(daemon.state.tries(&run.run, MAX_ITEMS)?).into_response())
}

async fn logs(Shared(daemon): App, Path(id): Path<String>) -> Result<Response, Refused> {
    let run = daemon.state.run(&id)?.ok_or_else(|| missing("this run"))?;
    Ok(Json(daemon.state.logs(&run.run, MAX_LINES)?).into_response())
}

async fn start(
    Shared(daemon): App,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    allowed(&daemon, &headers)?;
    if daemon.stopping.load(Ordering::Relaxed) {
        return Err(Refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is stopping".to_owned(),
        ));
    }
    let mut slots = daemon.slots();
    let slot = slots
        .get_mut(&name)
        .ok_or_else(|| missing("this pipeline"))?;
    if slot.queue.len() >= MAX_QUEUE {
        return Err(Refused(
            StatusCode::TOO_MANY_REQUESTS,
            "too many runs are waiting".to_owned(),
        ));
    }
    let run = slot.ask(&daemon.state, "api")?;
    let place = [(header::LOCATION, format!("/api/runs/{run}"))];
    let document = json!({ "pipeline": name, "run": run, "queued": slot.queue.len() });
    Ok((StatusCode::ACCEPTED, place, Json(document)).into_response())
}

async fn cancel(
    Shared(daemon): App,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    allowed(&daemon, &headers)?;
    let mut slots = daemon.slots();
    let run = daemon.state.run(&id)?;
    let id = match run {
        Some(run) => {
            let slot = slots
                .get(&run.pipeline)
                .ok_or_else(|| missing("this pipeline"))?;
            match (&slot.running, run.status.as_str()) {
                (Some(cancel), "running") => cancel.store(true, Ordering::Relaxed),
                _ => return Err(not_under_way()),
            }
            run.run
        }
        None => {
            let (pipeline, asked) = daemon
                .state
                .waiting(&id)?
                .ok_or_else(|| missing("this run"))?;
            let slot = slots
                .get_mut(&pipeline)
                .ok_or_else(|| missing("this pipeline"))?;
            // One that has left the queue and is not in the history yet begins just now.
            let at = slot.queue.iter().position(|other| other.id == asked.id);
            let at = at.ok_or_else(not_under_way)?;
            let why = "it was cancelled before it began";
            daemon
                .state
                .end_asked(&asked, &pipeline, Status::Cancelled, why)?;
            slot.queue.remove(at);
            asked.run
        }
    };
    let document = json!({ "run": id, "cancelled": true });
    Ok((StatusCode::ACCEPTED, Json(document)).into_response())
}

fn not_under_way() -> Refused {
    Refused(StatusCode::CONFLICT, "this run is not under way".to_owned())
}

async fn index(Shared(daemon): App) -> Result<Response, Refused> {
    Ok(Html(page::index(&daemon)?).into_response())
}

async fn run_page(Shared(daemon): App, Path(id): Path<String>) -> Result<Response, Refused> {
    let run = daemon.state.run(&id)?.ok_or_else(|| missing("this run"))?;
    Ok(Html(page::run(&daemon, &run)?).into_response())
}
