//! Durations as Traefik writes them: Go's form, or bare seconds.

use std::time::Duration;

/// Parses `300ms`, `1.5s`, `1m30s`, `2h`, or digits alone for seconds. No sign.
///
/// # Errors
/// What to write instead.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("\"{text}\" is not a duration; write \"30s\", \"300ms\" or \"1m30s\", say");
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Duration::from_secs).map_err(|_| wrong());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(digits.ok_or_else(wrong)?);
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(unit_len.unwrap_or(after.len()));
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() {
        Err(wrong())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_gos_forms_and_bare_seconds() {
        let check = |text, millis| assert_eq!(parse(text), Ok(Duration::from_millis(millis)));
        check("30s", 30_000);
        check("300ms", 300);
        check("1m30s", 90_000);
        check("1.5s", 1_500);
        check("2h", 7_200_000);
        check("15", 15_000);
        check("0", 0);
        check("0s", 0);
    }

    #[test]
    fn refuses_anything_else() {
        for text in [
            "",
            "s",
            "1",
            "1x",
            "1s2",
            "s1",
            "1..2s",
            "1e3s",
            " 1s",
            "99999999999999999999h",
        ] {
            assert_eq!(parse(text).is_err(), text != "1", "{text}");
        }
    }
}
