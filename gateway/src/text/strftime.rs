//! Dates for chat templates, as Python's `strftime` writes them in the C locale.

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats a Unix time in UTC. Conversions that templates do not use stay as they are.
pub fn strftime(format: &str, unix_s: u64) -> String {
    let (days, second_of_day) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil_date(days);
    // 1970 began on a Thursday.
    let day_name = DAYS[((days + 4) % 7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::with_capacity(format.len() * 2);
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&two_digits(year % 100)),
            Some('m') => out.push_str(&two_digits(month)),
            Some('d') => out.push_str(&two_digits(day)),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&two_digits(second_of_day / 3600)),
            Some('M') => out.push_str(&two_digits(second_of_day / 60 % 60)),
            Some('S') => out.push_str(&two_digits(second_of_day % 60)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

fn two_digits(number: u64) -> String {
    format!("{number:02}")
}

/// Year, month and day in the Gregorian calendar, from days since 1970-01-01. Counted from March on,
/// so that the leap day is the last of its year (Howard Hinnant, `civil_from_days`).
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    const DAYS_FROM_YEAR_0: u64 = 719_468;
    let days = days + DAYS_FROM_YEAR_0;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_dates() {
        let check = |unix_s, format, expected: &str| assert_eq!(strftime(format, unix_s), expected);
        check(0, "%A %d %b %Y %H:%M:%S", "Thursday 01 Jan 1970 00:00:00");
        check(951_782_400, "%Y-%m-%d", "2000-02-29");
        check(951_868_799, "%Y-%m-%d %H:%M:%S", "2000-02-29 23:59:59");
        check(951_868_800, "%d %B %y", "01 March 00");
        check(1_735_603_200, "%a %d %b %Y", "Tue 31 Dec 2024");
        check(4_107_542_400, "%Y-%m-%d", "2100-03-01");
        check(0, "100%% %q %", "100% %q %");
    }
}
