//! How long an item waits before it is tried again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use crate::spec::Retries;

/// The waits before each further try: twice the one before, some jitter, never more than `max_delay`.
pub(super) fn backoff(retries: &Retries) -> impl Iterator<Item = Duration> + use<> {
    let most = retries.max_delay;
    ExponentialBuilder::default()
        .with_min_delay(retries.delay)
        .with_max_delay(most)
        .with_max_times(retries.times as usize)
        .with_jitter()
        .build()
        // Jitter comes on top of what the builder holds below its own maximum.
        .map(move |wait| wait.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(times: u32, delay: u64, max_delay: u64) -> Vec<Duration> {
        let retries = Retries {
            times,
            delay: Duration::from_secs(delay),
            max_delay: Duration::from_secs(max_delay),
        };
        backoff(&retries).collect()
    }

    #[test]
    fn waits_double_with_jitter_up_to_the_longest() {
        for _ in 0..100 {
            let all = waits(9, 3, 60);
            assert_eq!(all.len(), 9);
            for (at, wait) in all.iter().enumerate() {
                let least = 3u64 << at;
                let (least, most) = (least.min(60), (2 * least).min(60));
                let range = Duration::from_secs(least)..=Duration::from_secs(most);
                assert!(
                    range.contains(wait),
                    "wait {at} is {wait:?}, not in {range:?}"
                );
            }
        }
        // Items that failed together do not all come back at once.
        assert_ne!(waits(4, 3, 3600), waits(4, 3, 3600));
    }

    #[test]
    fn no_wait_is_longer_than_the_longest() {
        let hour = Duration::from_secs(3600);
        assert_eq!(waits(50, 3600, 3600), [hour; 50]);
        assert_eq!(waits(3, 7200, 3600), [hour; 3]);
        assert!(waits(0, 1, 1).is_empty());
    }
}
