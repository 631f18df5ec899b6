//! What every operation can be told.

/// The setters of what every operation can be told, for a builder with the fields `threads`, `open`, `progress` and `cancel`.
#[doc(hidden)]
#[macro_export]
macro_rules! operation_setters {
    () => {
        /// How many threads work. Default: as many as there are cores.
        pub fn threads(mut self, threads: usize) -> Self {
            self.threads = (threads > 0).then_some(threads);
            self
        }

        /// How references are opened: caches, credentials.
        pub fn open_options(mut self, options: ::sparse_store::OpenOptions) -> Self {
            self.open = options;
            self
        }

        /// Told what is being done and how far it is.
        pub fn progress(mut self, progress: $crate::Progress) -> Self {
            self.progress = Some(progress);
            self
        }

        /// Stops the operation from outside.
        pub fn cancel(mut self, cancel: $crate::CancelToken) -> Self {
            self.cancel = cancel;
            self
        }
    };
}
