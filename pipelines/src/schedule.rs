//! Which scheduled times are due: cron in a time zone, with what was missed.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::spec::{Misfire, Schedule};

/// A time that is no older than this is on time: somebody was there, only a little late.
const ON_TIME_MS: i64 = 60_000;

/// Times that are looked at in one go; more of them are missed.
const MAX_TIMES: usize = 10_000;

/// What is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Scheduled times to run for, oldest first, in milliseconds since 1970; `true` where one is caught up with.
    pub(crate) runs: Vec<(i64, bool)>,
    /// Times that get no run.
    pub(crate) missed: u64,
}

fn at(ms: i64, zone: Tz) -> Option<DateTime<Tz>> {
    DateTime::<Utc>::from_timestamp_millis(ms).map(|time| time.with_timezone(&zone))
}

/// The first scheduled time after `after_ms`.
pub(crate) fn next(schedule: &Schedule, after_ms: i64) -> Option<i64> {
    let cron: croner::Cron = schedule.cron.parse().ok()?;
    let after = at(after_ms, schedule.timezone)?;
    cron.find_next_occurrence(&after, false)
        .ok()
        .map(|time| time.timestamp_millis())
}

/// The scheduled times after `seen_ms` up to `now_ms`, sorted out by the policy for missed ones.
pub(crate) fn due(schedule: &Schedule, seen_ms: i64, now_ms: i64) -> Due {
    let mut due = Due::default();
    let mut late = Vec::new();
    let mut after = seen_ms;
    for _ in 0..MAX_TIMES {
        let Some(time) = next(schedule, after).filter(|time| *time <= now_ms) else {
            break;
        };
        match now_ms - time <= ON_TIME_MS {
            true => due.runs.push((time, false)),
            false => late.push(time),
        }
        after = time;
    }
    let catch_up = i64::try_from(schedule.catch_up.as_millis()).unwrap_or(i64::MAX);
    let young: Vec<i64> = late
        .iter()
        .copied()
        .filter(|time| now_ms - time <= catch_up)
        .collect();
    let caught: Vec<i64> = match schedule.misfire {
        Misfire::Skip => Vec::new(),
        // A time that is due now stands for those before it as well.
        Misfire::Once if due.runs.is_empty() => young.last().copied().into_iter().collect(),
        Misfire::Once => Vec::new(),
        Misfire::All => young,
    };
    due.missed = (late.len() - caught.len()) as u64;
    due.runs
        .splice(0..0, caught.into_iter().map(|time| (time, true)));
    due
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::Overlap;

    fn schedule(cron: &str, zone: Tz, misfire: Misfire) -> Schedule {
        Schedule {
            cron: cron.to_owned(),
            timezone: zone,
            misfire,
            catch_up: Duration::from_secs(2 * 86_400),
            overlap: Overlap::Forbid,
        }
    }

    fn ms(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text)
            .unwrap()
            .timestamp_millis()
    }

    fn times(schedule: &Schedule, from: &str, count: usize) -> Vec<String> {
        let mut after = ms(from);
        (0..count)
            .map(|_| {
                after = next(schedule, after).unwrap();
                at(after, schedule.timezone).unwrap().to_rfc3339()
            })
            .collect()
    }

    #[test]
    fn clocks_go_forward_and_a_daily_run_is_not_lost() {
        let daily = schedule("30 2 * * *", chrono_tz::Europe::Berlin, Misfire::Once);
        assert_eq!(
            times(&daily, "2026-03-28T00:00:00Z", 3),
            [
                "2026-03-28T02:30:00+01:00",
                // 02:30 does not exist on this day.
                "2026-03-29T03:00:00+02:00",
                "2026-03-30T02:30:00+02:00",
            ]
        );
    }

    #[test]
    fn clocks_go_back_and_a_daily_run_is_not_doubled() {
        let daily = schedule("30 2 * * *", chrono_tz::Europe::Berlin, Misfire::Once);
        let found = times(&daily, "2026-10-24T00:00:00Z", 3);
        assert_eq!(
            found,
            [
                "2026-10-24T02:30:00+02:00",
                "2026-10-25T02:30:00+02:00",
                "2026-10-26T02:30:00+01:00",
            ]
        );
    }

    #[test]
    fn an_hourly_run_is_hourly_whatever_clocks_do() {
        let hourly = schedule("0 * * * *", chrono_tz::America::New_York, Misfire::Once);
        let mut after = ms("2026-11-01T03:30:00Z");
        for _ in 0..6 {
            let time = next(&hourly, after).unwrap();
            assert!(time - after <= 3_600_000);
            after = time;
        }
    }

    #[test]
    fn policies_for_missed_times() {
        let (seen, now) = (ms("2026-05-01T12:00:00Z"), ms("2026-05-04T12:30:00Z"));
        let of = |misfire| due(&schedule("0 2 * * *", chrono_tz::UTC, misfire), seen, now);
        // Missed: the 2nd, 3rd and 4th; the 2nd is older than two days.
        assert_eq!(
            of(Misfire::Skip),
            Due {
                runs: vec![],
                missed: 3
            }
        );
        assert_eq!(
            of(Misfire::Once),
            Due {
                runs: vec![(ms("2026-05-04T02:00:00Z"), true)],
                missed: 2
            }
        );
        assert_eq!(
            of(Misfire::All),
            Due {
                runs: vec![
                    (ms("2026-05-03T02:00:00Z"), true),
                    (ms("2026-05-04T02:00:00Z"), true)
                ],
                missed: 1
            }
        );
    }

    #[test]
    fn a_time_that_is_due_runs_once() {
        let minutely = schedule("* * * * *", chrono_tz::UTC, Misfire::Skip);
        let (seen, now) = (ms("2026-05-01T12:00:00Z"), ms("2026-05-01T12:01:01Z"));
        assert_eq!(
            due(&minutely, seen, now),
            Due {
                runs: vec![(ms("2026-05-01T12:01:00Z"), false)],
                missed: 0
            }
        );
        assert_eq!(due(&minutely, now, now), Due::default());
    }
}
