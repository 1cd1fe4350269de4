//! The date in UTC, as `strftime` writes it.

use std::time::{SystemTime, UNIX_EPOCH};

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
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A second of the proleptic Gregorian calendar.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    year: i64,
    /// From 0.
    month: usize,
    /// From 1.
    day: i64,
    /// From 1.
    day_of_year: i64,
    weekday: usize,
    second_of_day: i64,
}

impl Moment {
    /// Nothing was before 1970.
    pub(super) fn of(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
        let (mut year, mut day) = (1970 + days / 366, days);
        // The guess is early by the leap days that there were not, so the year can only be later.
        day -= days_before(year);
        while day >= days_in(year) {
            day -= days_in(year);
            year += 1;
        }
        let (day_of_year, mut month) = (day + 1, 0);
        while day >= days_of(month, year) {
            day -= days_of(month, year);
            month += 1;
        }
        let weekday = (days + 4) as usize % WEEKDAYS.len();
        Self { year, month, day: day + 1, day_of_year, weekday, second_of_day }
    }

    /// The text of a format, or the directive that is not known.
    pub(super) fn format(&self, format: &str) -> Result<String, char> {
        let (mut text, mut rest) = (String::new(), format.chars());
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            match rest.next() {
                // glibc's way to leave out the leading zero.
                Some('-') => {
                    let padded = self.directive(rest.next().unwrap_or('-'))?;
                    let short = padded.trim_start_matches('0');
                    text.push_str(if short.is_empty() { "0" } else { short });
                }
                Some(directive) => text.push_str(&self.directive(directive)?),
                None => return Err('%'),
            }
        }
        Ok(text)
    }

    fn directive(&self, directive: char) -> Result<String, char> {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let (month, weekday) = (MONTHS[self.month], WEEKDAYS[self.weekday]);
        Ok(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month + 1),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'B' => month.to_owned(),
            'b' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            'F' => self.format("%Y-%m-%d")?,
            'T' => self.format("%H:%M:%S")?,
            'D' => self.format("%m/%d/%y")?,
            '%' => "%".to_owned(),
            other => return Err(other),
        })
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64) -> i64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of(month: usize, year: i64) -> i64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

/// From 1 January 1970 to 1 January of a year.
fn days_before(year: i64) -> i64 {
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    365 * (year - 1970) + leaps(year - 1) - leaps(1969)
}
