//! Numbers of bytes, as people write and read them.

use std::fmt;

/// A number of bytes on the command line: `1073741824`, `512M`, `1GiB`, `1.5 GB`.
///
/// # Errors
/// A message if it is none.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        // A bare letter means a power of two, as with memory limits of containers.
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("{unit:?} is no unit of bytes; try 512M or 4GiB")),
    };
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(scale),
        Err(_) => number
            .parse::<f64>()
            .ok()
            .map(|number| number * scale as f64)
            .filter(|bytes| bytes.is_finite() && *bytes < u64::MAX as f64)
            .map(|bytes| bytes as u64),
    };
    match bytes {
        Some(0) | None => Err(format!("{text:?} is no number of bytes; try 512M or 4GiB")),
        Some(bytes) => Ok(bytes),
    }
}

/// A number of GiB on the command line, `0`, `4` or `0.5`, in bytes.
///
/// # Errors
/// A message if it is none.
pub fn parse_gib(text: &str) -> Result<u64, String> {
    let gib: f64 = text
        .trim()
        .parse()
        .map_err(|_| format!("{text:?} is no number of GiB; try 4 or 0.5"))?;
    let bytes = gib * (1u64 << 30) as f64;
    // Not a number is in no range.
    if !(0.0..u64::MAX as f64).contains(&bytes) {
        return Err(format!("{text} GiB is not from 0 to 2^34"));
    }
    Ok(bytes as u64)
}

/// Bytes as people read them.
#[derive(Debug, Clone, Copy)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..=1023 => write!(f, "{} B", self.0),
            1024..=1_048_575 => write!(f, "{:.1} KiB", bytes / 1024.0),
            1_048_576..=1_073_741_823 => write!(f, "{:.1} MiB", bytes / 1_048_576.0),
            _ => write!(f, "{:.2} GiB", bytes / 1_073_741_824.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_their_units() {
        for (text, bytes) in [
            ("1", 1),
            ("512M", 512 << 20),
            ("1GiB", 1 << 30),
            ("1.5g", 3 << 29),
            ("2 GB", 2_000_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "0",
            "-1",
            "1X",
            "GiB",
            "1e9",
            "99999999999999999999",
            "99999999T99",
            "1.2.3",
            "99999999999T",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn gib_are_read_as_bytes() {
        for (text, bytes) in [
            ("0", 0),
            ("4", 4 << 30),
            ("0.5", 1 << 29),
            ("-0", 0),
            (" 1e1 ", 10 << 30),
        ] {
            assert_eq!(parse_gib(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "-1",
            "-0.1",
            "NaN",
            "inf",
            "1GiB",
            "17179869184",
            "1e300",
        ] {
            assert!(parse_gib(bad).is_err(), "{bad}");
        }
    }
}
