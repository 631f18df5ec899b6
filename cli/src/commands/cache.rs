//! `sparse cache`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;
use sparse_cache::{CacheEntry, DeltaCache, DeltaMode, Job, JobState, Lease};

use super::{json, print_json};
use crate::args::cache::{
    Cache, CacheCommand, Gc, GetOrReconstruct, Jobs, Mode, Pin, Prefetch, Resolve, VerifyCache,
};
use crate::context::Context;
use crate::failure::Failure;
use crate::format;
use crate::progress::Bar;

pub(super) async fn run(args: &Cache, context: &Context) -> Result<u8, Failure> {
    if !args.max_size_gb.is_finite() || args.max_size_gb < 0.0 {
        return Err(Failure::usage(format!(
            "--max-size-gb {}: give a number of gigabytes",
            args.max_size_gb
        )));
    }
    let bar = context.bar();
    let cache = DeltaCache::new()
        .open_options(context.open_options(&bar))
        .max_cache_size_gb(args.max_size_gb)
        .max_workers(args.max_workers)
        .threads(context.global.threads)
        .device(context.device())
        .progress(bar.callback())
        .cancel(context.cancel())
        .open()?;
    context.measure_cache(&cache);
    match &args.command {
        CacheCommand::GetOrReconstruct(what) => get(what, args, &cache, bar, context).await,
        CacheCommand::Resolve(what) => resolve(what, &cache, bar, context).await,
        CacheCommand::Prefetch(what) => prefetch(what, args, &cache, bar, context).await,
        CacheCommand::Jobs(what) => jobs(what, &cache, bar, context).await,
        CacheCommand::Stats(_) => stats(&cache, bar, context),
        CacheCommand::Gc(what) => gc(what, &cache, bar, context).await,
        CacheCommand::Pin(what) => pin(what, true, &cache, bar, context),
        CacheCommand::Unpin(what) => pin(what, false, &cache, bar, context),
        CacheCommand::Verify(what) => verify(what, &cache, bar, context).await,
    }
}

async fn get(
    what: &GetOrReconstruct,
    args: &Cache,
    cache: &DeltaCache,
    bar: Bar,
    context: &Context,
) -> Result<u8, Failure> {
    if what.background {
        let jobs = cache.enqueue(&what.base, &[&what.delta])?;
        drop(bar);
        run_apart(args, context)?;
        show_jobs(&jobs, context)?;
        return Ok(0);
    }
    let lease = cache.get_or_reconstruct(&what.base, &what.delta).await?;
    drop(bar);
    if what.pin {
        cache.pin(lease.key(), true)?;
    }
    if let Some((program, arguments)) = what.command.split_first() {
        return run_with(&lease, program, arguments);
    }
    if context.global.json {
        print_json(&json!({
            "path": lease.path(),
            "key": lease.key(),
            "found": lease.found(),
            "seconds": lease.seconds(),
        }))?;
    } else {
        // The path alone: it is for other programs.
        writeln!(std::io::stdout(), "{}", lease.path().display())?;
    }
    Ok(0)
}

/// Runs a command while the model is held. Its exit code is ours.
fn run_with(lease: &Lease, program: &str, arguments: &[String]) -> Result<u8, Failure> {
    let status = Command::new(program)
        .args(arguments)
        .env("SPARSE_MODEL", lease.path())
        .status()
        .map_err(|error| Failure::usage(format!("cannot run {program}: {error}")))?;
    // Ended by a signal: as shells say it.
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}

/// Starts a process that runs the jobs, and does not wait for it.
fn run_apart(args: &Cache, context: &Context) -> Result<(), Failure> {
    use std::os::unix::process::CommandExt as _;
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("cannot find this program: {error}")))?;
    let mut command = Command::new(program);
    command
        .args(["cache", "jobs", "--run", "--quiet"])
        .args(["--max-size-gb", &args.max_size_gb.to_string()])
        .args(["--max-workers", &args.max_workers.to_string()])
        .args(["--threads", &context.global.threads.to_string()]);
    if let Some(dir) = &context.global.cache_dir {
        command.arg("--cache-dir").arg(dir);
    }
    if context.global.offline {
        command.arg("--offline");
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C in this terminal is not meant for it.
        .process_group(0)
        .spawn()
        .map_err(|error| Failure::failed(format!("cannot start the jobs: {error}")))?;
    Ok(())
}

async fn resolve(
    what: &Resolve,
    cache: &DeltaCache,
    bar: Bar,
    context: &Context,
) -> Result<u8, Failure> {
    let mode = match what.delta_mode {
        Mode::Auto => DeltaMode::Auto,
        Mode::PreferDelta => DeltaMode::PreferDelta,
        Mode::FullOnly => DeltaMode::FullOnly,
    };
    let resolved = cache
        .resolve(&what.model, what.base.as_deref(), mode)
        .await?;
    drop(bar);
    if context.global.json {
        print_json(&json!({
            "path": resolved.path,
            "from": if resolved.lease.is_some() { "delta" } else { "full" },
        }))?;
    } else {
        writeln!(std::io::stdout(), "{}", resolved.path.display())?;
    }
    Ok(0)
}

async fn prefetch(
    what: &Prefetch,
    args: &Cache,
    cache: &DeltaCache,
    bar: Bar,
    context: &Context,
) -> Result<u8, Failure> {
    let jobs = cache.enqueue(&what.base, &what.deltas)?;
    if what.background {
        drop(bar);
        run_apart(args, context)?;
        show_jobs(&jobs, context)?;
        return Ok(0);
    }
    cache.run_jobs().await?;
    let ids: Vec<String> = jobs.into_iter().map(|job| job.id).collect();
    // Another process may run some of them.
    let jobs = cache.wait_for(&ids).await?;
    drop(bar);
    ended(&jobs, context)
}

async fn jobs(what: &Jobs, cache: &DeltaCache, bar: Bar, context: &Context) -> Result<u8, Failure> {
    if what.run {
        let jobs = cache.run_jobs().await?;
        drop(bar);
        return ended(&jobs, context);
    }
    drop(bar);
    let jobs = match (&what.cancel, &what.id) {
        (Some(id), _) => vec![cache.cancel_job(id)?],
        (None, Some(id)) => vec![cache.get_job_status(id)?],
        (None, None) => cache.jobs(),
    };
    show_jobs(&jobs, context)?;
    Ok(0)
}

/// Jobs that have ended, and the exit code for them.
fn ended(jobs: &[Job], context: &Context) -> Result<u8, Failure> {
    show_jobs(jobs, context)?;
    if context.cancel().is_cancelled() {
        return Err(sparse_delta::DeltaError::Cancelled.into());
    }
    let failed = jobs.iter().any(|job| job.state != JobState::Done);
    Ok(if failed { 3 } else { 0 })
}

fn show_jobs(jobs: &[Job], context: &Context) -> Result<(), Failure> {
    if context.global.json {
        return print_json(&json(jobs));
    }
    if context.global.quiet || jobs.is_empty() {
        return Ok(());
    }
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            vec![
                job.id.clone(),
                job.state.name().to_owned(),
                format!("{:.0} %", job.progress * 100.0),
                job.delta.clone(),
                job.message.clone(),
            ]
        })
        .collect();
    let header = ["job", "state", "done", "delta", "message"];
    write!(std::io::stdout(), "{}", format::table(&header, &[2], &rows))?;
    Ok(())
}

fn stats(cache: &DeltaCache, bar: Bar, context: &Context) -> Result<u8, Failure> {
    let (stats, entries) = (cache.get_stats()?, cache.entries()?);
    drop(bar);
    if context.global.json {
        let mut document = json(&stats);
        if let Some(fields) = document.as_object_mut() {
            fields.insert("models".to_owned(), json(&entries));
        }
        print_json(&document)?;
        return Ok(0);
    }
    let mut out = std::io::stdout().lock();
    if !entries.is_empty() {
        write!(out, "{}", table(&entries))?;
    }
    writeln!(
        out,
        "{} models, {} of {}; {} hits, {} misses, {} waited; {} rebuilt in {:.2} s on average; {} evicted, {} found damaged; \
         {} jobs pending",
        stats.entries,
        format::bytes(stats.cache_size_bytes),
        format::bytes(stats.cache_limit_bytes),
        stats.cache_hits,
        stats.cache_misses,
        stats.cache_waits,
        stats.reconstructions,
        stats.avg_reconstruction_time_s,
        stats.evictions,
        stats.quarantined,
        stats.pending_jobs,
    )?;
    Ok(0)
}

fn table(entries: &[CacheEntry]) -> String {
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let mark = match (entry.pinned, entry.in_use) {
                (true, true) => "pinned, in use",
                (true, false) => "pinned",
                (false, true) => "in use",
                (false, false) => "",
            };
            vec![
                entry.key.chars().take(12).collect(),
                format::bytes(entry.bytes),
                entry.last_used.clone(),
                format!("{:.2} s", entry.seconds),
                mark.to_owned(),
                entry.delta.clone(),
            ]
        })
        .collect();
    let header = ["key", "size", "last used", "rebuilt in", "", "delta"];
    format::table(&header, &[1, 3], &rows)
}

async fn gc(what: &Gc, cache: &DeltaCache, bar: Bar, context: &Context) -> Result<u8, Failure> {
    let goal = match what.to_gb {
        Some(gigabytes) if !gigabytes.is_finite() || gigabytes < 0.0 => {
            return Err(Failure::usage(format!(
                "--to-gb {gigabytes}: give a number of gigabytes"
            )));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, which is as good as any answer"
        )]
        Some(gigabytes) => Some((gigabytes * 1e9) as u64),
        None => None,
    };
    let collected = cache.gc(goal).await?;
    drop(bar);
    if context.global.json {
        print_json(&json(&collected))?;
    } else if context.talks() {
        writeln!(
            std::io::stdout(),
            "{} models evicted, {} freed; {} are used",
            collected.evicted.len(),
            format::bytes(collected.freed_bytes),
            format::bytes(collected.used_bytes)
        )?;
    }
    Ok(0)
}

fn pin(
    what: &Pin,
    pinned: bool,
    cache: &DeltaCache,
    bar: Bar,
    context: &Context,
) -> Result<u8, Failure> {
    let entry = cache.pin(&what.model, pinned)?;
    drop(bar);
    if context.global.json {
        print_json(&json(&entry))?;
    } else if context.talks() {
        let what = if pinned { "pinned" } else { "no longer pinned" };
        writeln!(std::io::stdout(), "{what}: {}", entry.path.display())?;
    }
    Ok(0)
}

async fn verify(
    what: &VerifyCache,
    cache: &DeltaCache,
    bar: Bar,
    context: &Context,
) -> Result<u8, Failure> {
    let verified = cache.verify(what.model.as_deref()).await?;
    drop(bar);
    let failed = verified.iter().filter(|entry| !entry.ok).count();
    if context.global.json {
        print_json(&json!({ "ok": failed == 0, "models": verified }))?;
    } else {
        let mut out = std::io::stdout().lock();
        for entry in &verified {
            match &entry.problem {
                Some(problem) => writeln!(out, "FAILED {}: {problem}", entry.key)?,
                None if context.talks() => writeln!(out, "ok     {}", entry.key)?,
                None => {}
            }
        }
        if context.talks() {
            writeln!(out, "{} models, {failed} damaged", verified.len())?;
        }
    }
    Ok(if failed == 0 { 0 } else { 3 })
}
