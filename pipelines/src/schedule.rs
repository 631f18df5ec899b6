//! Which scheduled times are due: cron in a time zone, with what was missed.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::spec::{Misfire, Schedule};

/// A time that is no older than this is on time: somebody was there, only a little late.
const ON_TIME_MS: i64 = 60_000;

/// Times that are looked at in one go; the next look goes on where this one ended.
const MAX_TIMES: usize = 10_000;

/// What is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Scheduled times to run for, oldest first, in milliseconds since 1970; `true` where one is caught up with.
    pub(crate) runs: Vec<(i64, bool)>,
    /// Times that get no run.
    pub(crate) missed: u64,
    /// Up to when was looked.
    pub(crate) seen: i64,
}

fn at(ms: i64, zone: Tz) -> Option<DateTime<Tz>> {
    DateTime::<Utc>::from_timestamp_millis(ms).map(|time| time.with_timezone(&zone))
}

/// The scheduled times after `after_ms`.
fn times(schedule: &Schedule, after_ms: i64) -> impl Iterator<Item = i64> {
    let cron: Option<croner::Cron> = schedule.cron.parse().ok();
    let zone = schedule.timezone;
    std::iter::successors(Some(after_ms), move |after| {
        let time = cron
            .as_ref()?
            .find_next_occurrence(&at(*after, zone)?, false);
        Some(time.ok()?.timestamp_millis())
    })
    .skip(1)
}

/// The first scheduled time after `after_ms`.
pub(crate) fn next(schedule: &Schedule, after_ms: i64) -> Option<i64> {
    times(schedule, after_ms).next()
}

/// The scheduled times after `seen_ms` up to `now_ms`, sorted out by the policy for missed ones.
pub(crate) fn due(schedule: &Schedule, seen_ms: i64, now_ms: i64) -> Due {
    let mut all: Vec<i64> = times(schedule, seen_ms)
        .take_while(|time| *time <= now_ms)
        .take(MAX_TIMES + 1)
        .collect();
    let more = all.len() > MAX_TIMES;
    all.truncate(MAX_TIMES);
    let on_time = all.partition_point(|time| now_ms - time > ON_TIME_MS);
    let (late, punctual) = all.split_at(on_time);
    let catch_up = i64::try_from(schedule.catch_up.as_millis()).unwrap_or(i64::MAX);
    let young = &late[late.partition_point(|time| now_ms - time > catch_up)..];
    let caught = match schedule.misfire {
        Misfire::Skip => &[],
        // A later time stands for those before it as well.
        Misfire::Once if more || !punctual.is_empty() => &[],
        Misfire::Once => &young[young.len().saturating_sub(1)..],
        Misfire::All => young,
    };
    let runs = caught.iter().map(|time| (*time, true));
    Due {
        missed: (late.len() - caught.len()) as u64,
        seen: all.last().copied().filter(|_| more).unwrap_or(now_ms),
        runs: runs
            .chain(punctual.iter().map(|time| (*time, false)))
            .collect(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::time::Duration;

    use chrono::TimeZone as _;
    use proptest::prelude::*;

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

    fn shown(schedule: &Schedule, from: &str, count: usize) -> Vec<String> {
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
            shown(&daily, "2026-03-28T00:00:00Z", 3),
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
        let found = shown(&daily, "2026-10-24T00:00:00Z", 3);
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
                missed: 3,
                seen: now
            }
        );
        assert_eq!(
            of(Misfire::Once),
            Due {
                runs: vec![(ms("2026-05-04T02:00:00Z"), true)],
                missed: 2,
                seen: now
            }
        );
        assert_eq!(
            of(Misfire::All),
            Due {
                runs: vec![
                    (ms("2026-05-03T02:00:00Z"), true),
                    (ms("2026-05-04T02:00:00Z"), true)
                ],
                missed: 1,
                seen: now
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
                missed: 0,
                seen: now
            }
        );
        assert!(due(&minutely, now, now).runs.is_empty());
    }

    #[test]
    fn a_daemon_that_was_away_for_long_looks_at_every_time_and_runs_for_the_latest() {
        // Every second for a day and a half: more than one look takes.
        let mut often = schedule("* * * * * *", chrono_tz::UTC, Misfire::Once);
        often.catch_up = Duration::from_secs(3600);
        let (mut seen, now) = (ms("2026-05-01T00:00:00Z"), ms("2026-05-02T12:00:00Z"));
        let (mut runs, mut missed) = (Vec::new(), 0);
        while seen < now {
            let due = due(&often, seen, now);
            assert!(due.seen > seen);
            seen = due.seen;
            runs.extend(due.runs);
            missed += due.missed;
        }
        // The last minute is on time, so nothing stands for what is late.
        assert_eq!((runs.len(), missed), (61, 36 * 3600 - 61));
        assert_eq!(runs.last(), Some(&(now, false)));

        // Without a time that is due now, the latest missed one gets the run.
        let hourly = schedule("0 * * * *", chrono_tz::UTC, Misfire::Once);
        let due = due(&hourly, ms("2020-01-01T00:00:00Z"), now + 1_800_000);
        assert!(due.runs.is_empty() && due.missed == MAX_TIMES as u64);
    }

    #[test]
    fn a_daily_run_is_daily_in_every_zone() {
        for zone in [
            chrono_tz::Europe::Berlin,
            chrono_tz::America::New_York,
            // Half an hour of daylight saving.
            chrono_tz::Australia::Lord_Howe,
            chrono_tz::Asia::Kathmandu,
            chrono_tz::America::Santiago,
            chrono_tz::UTC,
        ] {
            for cron in ["30 2 * * *", "15 1 * * *", "0 0 * * *", "59 23 * * *"] {
                let daily = schedule(cron, zone, Misfire::Once);
                let start = zone.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).unwrap();
                let days: Vec<_> = times(&daily, start.timestamp_millis())
                    .take(365)
                    .map(|time| at(time, zone).unwrap().date_naive())
                    .collect();
                let first = days[0] - start.date_naive();
                assert!(first.num_days() <= 1, "{cron} in {zone}");
                for pair in days.windows(2) {
                    assert_eq!(pair[1], pair[0].succ_opt().unwrap(), "{cron} in {zone}");
                }
            }
        }
    }

    const CRONS: [&str; 7] = [
        "*/20 * * * *",
        "0 * * * *",
        "30 2 * * *",
        "15 1,2,3 * * *",
        "0 9 * * MON-FRI",
        "30 */5 * * *",
        "@daily",
    ];
    const ZONES: [Tz; 4] = [
        chrono_tz::Europe::Berlin,
        chrono_tz::America::New_York,
        chrono_tz::Australia::Lord_Howe,
        chrono_tz::UTC,
    ];

    proptest! {
        /// However often somebody looks, and whatever clocks do meanwhile, every time is due exactly once.
        #[test]
        fn every_time_is_due_once(
            cron in 0..CRONS.len(),
            zone in 0..ZONES.len(),
            start in 0_i64..365 * 24,
            looks in proptest::collection::vec(1_i64..600_000_000, 1..40),
        ) {
            let mut schedule = schedule(CRONS[cron], ZONES[zone], Misfire::All);
            schedule.catch_up = Duration::from_secs(100 * 86_400);
            let begin = ms("2026-01-01T00:00:00Z") + start * 3_600_000;
            let (mut now, mut seen, mut found) = (begin, begin, Vec::new());
            for look in looks {
                now += look;
                let due = due(&schedule, seen, now);
                prop_assert_eq!(due.missed, 0);
                seen = due.seen;
                found.extend(due.runs.into_iter().map(|(time, _)| time));
            }
            let whole: Vec<i64> = times(&schedule, begin).take_while(|time| *time <= now).collect();
            prop_assert_eq!(found, whole);
        }

        /// Every time gets its run or is counted, by every policy; only young ones are caught up with.
        #[test]
        fn what_gets_no_run_is_counted(
            cron in 0..CRONS.len(),
            zone in 0..ZONES.len(),
            misfire in 0..3_usize,
            catch_up in 0_u64..20 * 86_400,
            away in 0_i64..30 * 86_400_000,
        ) {
            let misfire = [Misfire::Skip, Misfire::Once, Misfire::All][misfire];
            let mut schedule = schedule(CRONS[cron], ZONES[zone], misfire);
            schedule.catch_up = Duration::from_secs(catch_up);
            let seen = ms("2026-10-10T00:00:00Z");
            let now = seen + away;
            let due = due(&schedule, seen, now);
            let all = times(&schedule, seen).take_while(|time| *time <= now).count();
            prop_assert_eq!(due.runs.len() as u64 + due.missed, all as u64);
            let late = due.runs.iter().filter(|(_, late)| *late).count();
            match misfire {
                Misfire::Skip => prop_assert_eq!(late, 0),
                Misfire::Once => prop_assert!(late <= 1 && (late == 0 || due.runs.len() == 1)),
                Misfire::All => {}
            }
            for (time, late) in due.runs {
                prop_assert_eq!(late, now - time > ON_TIME_MS);
                prop_assert!(!late || now - time <= i64::try_from(catch_up).unwrap() * 1000);
            }
        }
    }
}
