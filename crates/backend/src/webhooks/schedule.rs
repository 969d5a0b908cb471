//! When a message that was not taken is sent again: the schedule Standard Webhooks recommends.

use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
/// After each failed attempt, in seconds. The first attempt is made at once.
const WAITS: [u64; 9] = [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];
/// Up to this share is added, so that what failed together does not come back together.
const JITTER: f64 = 0.1;

/// How long to wait after the `attempt`-th attempt (from 1) failed; none: that was the last one. `jitter` is 0 to 1.
#[must_use]
pub fn wait(attempt: u32, jitter: f64) -> Option<Duration> {
    let index = usize::try_from(attempt.checked_sub(1)?).ok()?;
    let seconds = WAITS.get(index)?;
    Some(Duration::from_secs(*seconds).mul_f64(1.0 + JITTER * jitter.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_attempts_within_about_three_days() {
        let waits: Vec<u64> = (1..).map_while(|n| wait(n, 0.0)).map(|w| w.as_secs()).collect();
        assert_eq!(waits, [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]);
        assert_eq!(wait(1, 1.0), Some(Duration::from_millis(5500)));
        assert_eq!((wait(0, 0.0), wait(10, 0.0)), (None, None));
    }
}
