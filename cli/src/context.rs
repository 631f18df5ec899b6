//! What commands share: the global options, the wish to stop, how models are opened.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use sparse_cache::DeltaCache;
use sparse_delta::CancelToken;
use sparse_operators::SparseConfig;
use sparse_pipelines::State;
use sparse_pipelines::metrics::{CommandRun, Metrics};
use sparse_pipelines::state::Bytes;
use sparse_store::OpenOptions;

use crate::args::{Device, Global};
use crate::failure::{Failure, say};
use crate::interrupt::Interrupt;
use crate::progress::Bar;

/// The surroundings of a command.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) interrupt: Interrupt,
    /// What the command did, for the metrics.
    measured: Arc<Mutex<Measured>>,
}

/// What a command did, for the metrics.
#[derive(Clone, Default)]
struct Measured {
    bytes: Vec<Bytes>,
    dataset_rows: Vec<(&'static str, u64)>,
    verify_failures: u64,
    /// The cache that was used.
    cache: Option<DeltaCache>,
    /// A pipeline's history, with its name.
    history: Option<(Arc<State>, String)>,
}

impl Context {
    /// Checks the global options.
    pub(crate) fn new(global: Global, interrupt: Interrupt) -> Result<Self, Failure> {
        if global.device == Device::Cuda
            && let Err(absent) = sparse_gpu::probe()
        {
            let error = sparse_gpu::GpuError::from(absent);
            return Err(Failure::usage(format!("--device cuda: {error}")));
        }
        Ok(Self {
            global,
            interrupt,
            measured: Arc::default(),
        })
    }

    /// Set when the user asks to stop.
    pub(crate) fn cancel(&self) -> CancelToken {
        self.interrupt.token()
    }

    /// A progress bar on standard error, where that is a terminal.
    pub(crate) fn bar(&self) -> Bar {
        Bar::new(self.global.quiet)
    }

    /// How models are opened; downloads show on `bar`.
    pub(crate) fn open_options(&self, bar: &Bar) -> OpenOptions {
        let mut options = self.config().open_options();
        options.progress = Some(bar.callback());
        options
    }

    /// The options of a SQL session.
    pub(crate) fn config(&self) -> SparseConfig {
        SparseConfig {
            cache_dir: self.global.cache_dir.clone(),
            offline: self.global.offline.then_some(true),
            threads: self.global.threads,
            device: self.device(),
            ..SparseConfig::default()
        }
    }

    /// Where to compute what has GPU kernels.
    pub(crate) fn device(&self) -> sparse_gpu::Choice {
        match self.global.device {
            Device::Auto => sparse_gpu::Choice::Auto,
            Device::Cpu => sparse_gpu::Choice::Cpu,
            Device::Cuda => sparse_gpu::Choice::Cuda,
        }
    }

    fn measured(&self) -> std::sync::MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what was compressed.
    pub(crate) fn measure_bytes(
        &self,
        kind: &str,
        codec: &str,
        input_bytes: u64,
        delta_bytes: u64,
    ) {
        self.measured().bytes.push(Bytes {
            kind: kind.to_owned(),
            codec: codec.to_owned(),
            input_bytes,
            delta_bytes,
        });
    }

    /// Notes rows of a dataset that was compressed, by class.
    pub(crate) fn measure_rows(&self, classes: &[(&'static str, u64)]) {
        self.measured().dataset_rows.extend_from_slice(classes);
    }

    /// Notes the cache whose statistics are metrics.
    pub(crate) fn measure_cache(&self, cache: &DeltaCache) {
        self.measured().cache = Some(cache.clone());
    }

    /// Notes checks of an artifact that failed.
    pub(crate) fn measure_verify_failures(&self, failures: u64) {
        self.measured().verify_failures += failures;
    }

    /// Notes whose history the metrics are of.
    pub(crate) fn measure_history(&self, state: &Arc<State>, pipeline: &str) {
        self.measured().history = Some((Arc::clone(state), pipeline.to_owned()));
    }

    /// Pushes or writes the metrics of a command that has ended, where that was asked for. What fails is a warning: it does
    /// not undo what the command did.
    pub(crate) async fn report_metrics(
        &self,
        command: &str,
        started: SystemTime,
        ended: &Result<u8, Failure>,
    ) {
        let global = &self.global;
        if global.metrics_push.is_none() && global.metrics_file.is_none() {
            return;
        }
        // One guard at a time: it is held to the end of its statement.
        let measured = self.measured().clone();
        let run = CommandRun {
            command: command.to_owned(),
            started: started
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0.0, |time| time.as_secs_f64()),
            seconds: started.elapsed().map_or(0.0, |time| time.as_secs_f64()),
            exit_code: match ended {
                Ok(code) => *code,
                Err(failure) => failure.code,
            },
            bytes: measured.bytes,
            dataset_rows: measured.dataset_rows,
            verify_failures: measured.verify_failures,
        };
        let (history, cache) = (measured.history, measured.cache);
        let metrics = || {
            let mut metrics = Metrics::new();
            metrics.command(&run);
            if let Some((state, pipeline)) = &history
                && let Err(error) = metrics.history(state, Some(pipeline))
            {
                say(&format!("warning: the metrics are not complete: {error}"));
            }
            if let Some(cache) = &cache {
                match cache.get_stats() {
                    Ok(stats) => metrics.cache(&stats, &cache.jobs()),
                    Err(error) => say(&format!("warning: the metrics are not complete: {error}")),
                }
            }
            metrics
        };
        if let Some(path) = &global.metrics_file
            && let Err(error) = sparse_pipelines::metrics::write(path, metrics())
        {
            say(&format!("warning: --metrics-file: {error}"));
        }
        if let Some(url) = &global.metrics_push {
            let group = match &history {
                Some((_, pipeline)) => [("pipeline", pipeline.as_str())],
                None => [("command", command)],
            };
            if let Err(problem) = sparse_pipelines::metrics::push(url, &group, metrics()).await {
                say(&format!("warning: --metrics-push: {problem}"));
            }
        }
    }

    /// Whether summaries are printed for people.
    pub(crate) fn talks(&self) -> bool {
        !self.global.quiet && !self.global.json
    }
}
