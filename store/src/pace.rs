//! How far and how fast, in words.

use std::time::Duration;

/// `12.3 of 22.3 MB, 350 MB/s`: bytes done of all, and the rate since the beginning; no rate before there is one.
#[must_use]
pub fn pace(done: u64, total: u64, elapsed: Duration) -> String {
    let (divisor, unit) = if total < 10_000_000_000 {
        (1e6, "MB")
    } else {
        (1e9, "GB")
    };
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (done, total) = (done.min(total) as f64, total as f64);
    let mut text = format!("{:.1} of {:.1} {unit}", done / divisor, total / divisor);
    let seconds = elapsed.as_secs_f64();
    if done > 0.0 && seconds > 0.05 {
        text.push_str(&format!(", {:.0} MB/s", done / 1e6 / seconds));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_well() {
        let second = Duration::from_secs(1);
        assert_eq!(pace(0, 22_300_000, second), "0.0 of 22.3 MB");
        assert_eq!(
            pace(11_000_000, 22_000_000, second),
            "11.0 of 22.0 MB, 11 MB/s"
        );
        assert_eq!(
            pace(30_000_000_000, 20_000_000_000, 20 * second),
            "20.0 of 20.0 GB, 1000 MB/s"
        );
    }
}
