//! CPUs, as people and the system list them.

use std::fmt;
use std::str::FromStr;

/// Highest number of a CPU: Linux names 1024 in a thread's affinity.
const MAX_CPU: usize = 1023;

/// CPUs by number, each once and at least one: `0-1` or `0,2,4-7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList {
    cpus: Vec<usize>,
}

impl CpuList {
    /// The numbers, in the order they were given.
    pub fn cpus(&self) -> &[usize] {
        &self.cpus
    }
}

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("the list is empty; try 0-1 or 0,2,4-7".to_owned());
        }
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (parse_cpu(first)?, parse_cpu(last)?);
            if first > last {
                return Err(format!("{}: {first} is above {last}", part.trim()));
            }
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    return Err(format!("CPU {cpu} is named twice"));
                }
                cpus.push(cpu);
            }
        }
        Ok(CpuList { cpus })
    }
}

fn parse_cpu(text: &str) -> Result<usize, String> {
    let text = text.trim();
    // A sign is no part of a number here.
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(format!(
            "{text:?} is no number of a CPU; try 0-1 or 0,2,4-7"
        ));
    }
    match text.parse() {
        Ok(cpu) if cpu <= MAX_CPU => Ok(cpu),
        _ => Err(format!("CPU {text} is above {MAX_CPU}")),
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.cpus.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [one] => write!(f, "{comma}{one}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_read_in_their_order() {
        for (text, expected, shown) in [
            ("0", vec![0], "0"),
            ("0-1", vec![0, 1], "0-1"),
            ("0,2,4-7", vec![0, 2, 4, 5, 6, 7], "0,2,4-7"),
            (" 5 , 3 - 4 ,0", vec![5, 3, 4, 0], "5,3-4,0"),
            ("7-7", vec![7], "7"),
            ("1023", vec![1023], "1023"),
        ] {
            let list: CpuList = text.parse().unwrap();
            assert_eq!(
                (list.cpus(), list.to_string().as_str()),
                (&*expected, shown)
            );
        }
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("  ", "empty"),
            (",", "\"\" is no number"),
            ("0,", "\"\" is no number"),
            ("-1", "\"\" is no number"),
            ("1-", "\"\" is no number"),
            ("+1", "\"+1\" is no number"),
            ("a", "\"a\" is no number"),
            ("0-1-2", "\"1-2\" is no number"),
            ("3-1", "3 is above 1"),
            ("0-2,1", "CPU 1 is named twice"),
            ("1024", "above 1023"),
            ("0-99999999999999999999999", "above 1023"),
        ] {
            let error = text.parse::<CpuList>().unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
