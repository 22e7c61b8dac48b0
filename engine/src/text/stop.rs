/// Finds stop strings in text that arrives in pieces.
///
/// The end of the text is held back while it may be the beginning of a stop string, so what was
/// given out never has to be taken back. Matching is by Knuth, Morris and Pratt's automaton: time
/// linear in the text for each stop string, whatever its length.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<Matcher>,
    include_stop: bool,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopCheck {
    /// Text that became certain. When stopped: up to the stop string, or with it.
    pub text: String,
    /// The stop string that ended the text. Nothing after it is text any more.
    pub stopped: Option<String>,
}

impl StopStrings {
    /// Text ends at the first of `stops` to be complete; where two end at the same character, at
    /// the longer. With `include_stop` it is part of the text.
    ///
    /// # Panics
    /// If a stop string is empty: requests with one are refused before they get here.
    pub fn new(stops: Vec<String>, include_stop: bool) -> StopStrings {
        let stops = stops.into_iter().map(Matcher::new).collect();
        StopStrings {
            stops,
            include_stop,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next piece of text. After a stop string there is no more text.
    pub fn push(&mut self, piece: &str) -> StopCheck {
        if self.stopped {
            return StopCheck::default();
        }
        let start = self.held.len();
        self.held.push_str(piece);
        for at in start..self.held.len() {
            let byte = self.held.as_bytes()[at];
            let ended = self
                .stops
                .iter_mut()
                .filter_map(|stop| stop.step(byte).then_some(&stop.text));
            let Some(stop) = ended.max_by_key(|stop| stop.len()) else {
                continue;
            };
            self.stopped = true;
            let stop = stop.clone();
            let end = at + 1;
            self.held.truncate(if self.include_stop {
                end
            } else {
                end - stop.len()
            });
            return StopCheck {
                text: std::mem::take(&mut self.held),
                stopped: Some(stop),
            };
        }
        let undecided = self
            .stops
            .iter()
            .map(|stop| stop.matched)
            .max()
            .unwrap_or(0);
        let certain = self.held.len() - undecided;
        let rest = self.held.split_off(certain);
        StopCheck {
            text: std::mem::replace(&mut self.held, rest),
            stopped: None,
        }
    }

    /// Ends the text: what was held back is text after all.
    pub fn flush(&mut self) -> String {
        for stop in &mut self.stops {
            stop.matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}

/// One stop string and how much of it the text ends with.
#[derive(Debug, Clone)]
struct Matcher {
    text: String,
    /// `fallback[i]`: length of the longest proper prefix of `text` that `text[..=i]` ends with.
    fallback: Vec<usize>,
    matched: usize,
}

impl Matcher {
    fn new(text: String) -> Matcher {
        assert!(!text.is_empty(), "an empty stop string");
        let bytes = text.as_bytes();
        let mut fallback = vec![0; bytes.len()];
        for i in 1..bytes.len() {
            let mut matched = fallback[i - 1];
            while matched > 0 && bytes[matched] != bytes[i] {
                matched = fallback[matched - 1];
            }
            fallback[i] = matched + usize::from(bytes[matched] == bytes[i]);
        }
        Matcher {
            text,
            fallback,
            matched: 0,
        }
    }

    /// Takes the next byte; true when it completes the string. Not to be called after that.
    fn step(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
        self.matched == bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where the text ends and which stop string ended it, found the simple way.
    fn search(text: &str, stops: &[String]) -> Option<(usize, String)> {
        let ends = stops
            .iter()
            .filter_map(|stop| Some((text.find(stop.as_str())? + stop.len(), stop)));
        let (end, stop) = ends.min_by_key(|(end, stop)| (*end, usize::MAX - stop.len()))?;
        Some((end, stop.clone()))
    }

    proptest! {
        #[test]
        fn pieces_stop_where_a_search_of_the_joined_text_does(
            pieces in prop::collection::vec("[abé]{0,4}", 0..16),
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
            include in any::<bool>(),
        ) {
            let joined = pieces.concat();
            let mut checker = StopStrings::new(stops.clone(), include);
            let (mut text, mut stopped) = (String::new(), None);
            for piece in &pieces {
                let check = checker.push(piece);
                text.push_str(&check.text);
                stopped = stopped.or(check.stopped);
            }
            text.push_str(&checker.flush());
            match search(&joined, &stops) {
                None => prop_assert_eq!((text, stopped), (joined, None)),
                Some((end, stop)) => {
                    let end = if include { end } else { end - stop.len() };
                    prop_assert_eq!((&text[..], stopped), (&joined[..end], Some(stop)));
                }
            }
        }
    }

    #[test]
    fn text_is_held_back_only_while_it_may_be_a_stop_string() {
        let mut stops = StopStrings::new(vec!["\n\nUser".to_owned()], false);
        assert_eq!(stops.push("Hi.\n").text, "Hi.");
        assert_eq!(stops.push("\n").text, "");
        assert_eq!(stops.push("Us").text, "");
        assert_eq!(stops.push("ual").text, "\n\nUsual");
        let check = stops.push("\n\nUser: x");
        assert_eq!(
            (check.text.as_str(), check.stopped.as_deref()),
            ("", Some("\n\nUser"))
        );
        assert_eq!(stops.push("more"), StopCheck::default());
        assert_eq!(stops.flush(), "");
    }

    #[test]
    #[should_panic(expected = "an empty stop string")]
    fn an_empty_stop_string_is_a_bug() {
        StopStrings::new(vec!["x".to_owned(), String::new()], false);
    }

    #[test]
    fn a_long_stop_string_against_a_long_text_is_linear() {
        let stop = "a".repeat(1 << 20) + "b";
        let mut stops = StopStrings::new(vec![stop], false);
        let piece = "a".repeat(1 << 20);
        let start = std::time::Instant::now();
        for _ in 0..4 {
            assert!(stops.push(&piece).stopped.is_none());
        }
        assert!(stops.push("b").stopped.is_some());
        assert!(start.elapsed().as_secs() < 5);
    }
}
