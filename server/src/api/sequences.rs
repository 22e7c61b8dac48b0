//! How many sequences a request asks for, and how they are found.

use pageloom_engine::{BeamSearch, EarlyStopping, MAX_BEAMS};
use pageloom_model_runner::{SamplingParams, TokenId};

use super::error::{ApiError, shorten};
use super::object::Object;
use super::params::Limits;

/// Most sequences generated from one prompt.
pub const MAX_N: usize = 128;

/// The sequences of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sequences {
    /// Returned.
    pub n: usize,
    /// Generated, of which the `n` best are returned; with [`beams`](Self::beams) the width of the
    /// search. `None`: `n`.
    pub best_of: Option<usize>,
    /// Searched for instead of drawn.
    pub beams: Option<BeamSearch>,
}

impl Sequences {
    /// Takes `n`, `best_of`, `use_beam_search`, `length_penalty` and `early_stopping`.
    ///
    /// What a search does not go with in `sampling` beyond this, the engine refuses.
    ///
    /// # Errors
    /// 400 naming the field that is out of range, or that would be without effect.
    pub(super) fn take(
        object: &mut Object<'_>,
        limits: &Limits,
        sampling: &SamplingParams,
        stream: bool,
    ) -> Result<Self, ApiError> {
        let sequences = Sequences {
            n: object.take("n")?.unwrap_or(1),
            best_of: object.take("best_of")?,
            beams: take_beams(object)?,
        };
        sequences.check_counts(MAX_N.min(limits.max_num_seqs))?;
        let (n, num) = (sequences.n, sequences.num_generated());
        if stream && num > n {
            return Err(ApiError::invalid(
                "best_of",
                format!(
                    "best_of must be n ({n}) in a stream, since the best are known only when all \
                     are there, got {num}"
                ),
            ));
        }
        if sequences.beams.is_some() {
            check_allowed(n, &sampling.allowed_token_ids)?;
        } else if num > 1 && sampling.temperature == 0.0 {
            let (field, got) = if n > 1 { ("n", n) } else { ("best_of", num) };
            return Err(ApiError::invalid(
                field,
                format!(
                    "{field} must be 1 when temperature is 0 without use_beam_search (all \
                     sequences would be equal), got {got}"
                ),
            ));
        }
        Ok(sequences)
    }

    /// Sequences that are generated: as many are computed and held at once.
    pub(super) fn num_generated(&self) -> usize {
        self.best_of.unwrap_or(self.n)
    }

    /// The field that says how many are generated.
    pub(super) fn count_field(&self) -> &'static str {
        if self.best_of.is_some() {
            "best_of"
        } else {
            "n"
        }
    }

    fn check_counts(&self, most: usize) -> Result<(), ApiError> {
        let n = self.n;
        if n == 0 || n > most {
            return Err(ApiError::invalid(
                "n",
                format!("n must be between 1 and {most}, got {n}"),
            ));
        }
        let num = self.num_generated();
        if num < n || num > most {
            return Err(ApiError::invalid(
                "best_of",
                format!("best_of must be between n ({n}) and {most}, got {num}"),
            ));
        }
        if self.beams.is_some() && num > MAX_BEAMS {
            let field = self.count_field();
            return Err(ApiError::invalid(
                field,
                format!("{field} must be at most {MAX_BEAMS} with use_beam_search, got {num}"),
            ));
        }
        Ok(())
    }
}

fn take_beams(object: &mut Object<'_>) -> Result<Option<BeamSearch>, ApiError> {
    let wanted = object.take("use_beam_search")?.unwrap_or(false);
    let default = BeamSearch::default();
    let length_penalty: Option<f32> = object.take("length_penalty")?;
    let rules = BeamSearch {
        length_penalty: length_penalty.unwrap_or(default.length_penalty),
        early_stopping: take_early_stopping(object)?.unwrap_or(default.early_stopping),
    };
    if wanted {
        return Ok(Some(rules));
    }
    let without_effect = |field: &str, accepted: &str| {
        ApiError::invalid(
            field,
            format!("{field} ranks beams: without use_beam_search only {accepted} is accepted"),
        )
    };
    if rules.length_penalty != default.length_penalty {
        return Err(without_effect("length_penalty", "1"));
    }
    if rules.early_stopping != default.early_stopping {
        return Err(without_effect("early_stopping", "false"));
    }
    Ok(None)
}

fn take_early_stopping(object: &mut Object<'_>) -> Result<Option<EarlyStopping>, ApiError> {
    let Some(value) = object.take_raw("early_stopping") else {
        return Ok(None);
    };
    match value.get() {
        "true" => Ok(Some(EarlyStopping::Immediately)),
        "false" => Ok(Some(EarlyStopping::Heuristic)),
        r#""never""# => Ok(Some(EarlyStopping::Never)),
        other => Err(ApiError::invalid(
            "early_stopping",
            format!(
                "early_stopping must be true, false or \"never\", got {}",
                shorten(other)
            ),
        )),
    }
}

/// Whether a search among few tokens is sure to find as many sequences as are returned.
fn check_allowed(n: usize, allowed: &[TokenId]) -> Result<(), ApiError> {
    let mut different = Vec::with_capacity(n);
    for id in allowed {
        if different.len() < n && !different.contains(id) {
            different.push(*id);
        }
    }
    if allowed.is_empty() || different.len() == n {
        return Ok(());
    }
    Err(ApiError::invalid(
        "allowed_token_ids",
        format!(
            "allowed_token_ids must have at least n ({n}) different token ids with \
             use_beam_search, got {}",
            different.len()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Sequences, ApiError> {
        let limits = Limits {
            max_model_len: 100,
            vocab_size: 50,
            max_num_seqs: 20,
        };
        let mut object = Object::parse(body.as_bytes())?;
        let sampling = SamplingParams {
            temperature: object.take("temperature")?.unwrap_or(1.0),
            allowed_token_ids: object
                .take_list("allowed_token_ids", 50)?
                .unwrap_or_default(),
            ..SamplingParams::default()
        };
        let stream = object.take("stream")?.unwrap_or(false);
        let sequences = Sequences::take(&mut object, &limits, &sampling, stream)?;
        object.finish()?;
        Ok(sequences)
    }

    #[test]
    fn the_width_of_a_search_is_best_of_or_n() {
        let sequences = parse("{}").unwrap();
        assert_eq!((sequences.num_generated(), sequences.beams), (1, None));
        let ranked = parse(r#"{"best_of": 20, "n": 3}"#).unwrap();
        assert_eq!((ranked.n, ranked.num_generated()), (3, 20));
        let wide = parse(r#"{"n": 4, "use_beam_search": true, "temperature": 0, "stream": true}"#);
        let wide = wide.unwrap();
        assert_eq!(
            (wide.num_generated(), wide.beams),
            (4, Some(BeamSearch::default()))
        );
        let strict = r#"{"use_beam_search": true, "best_of": 16, "length_penalty": -0.5, "early_stopping": "never"}"#;
        let strict = parse(strict).unwrap();
        assert_eq!((strict.n, strict.num_generated()), (1, 16));
        let rules = BeamSearch {
            length_penalty: -0.5,
            early_stopping: EarlyStopping::Never,
        };
        assert_eq!(strict.beams, Some(rules));
        let eager = parse(r#"{"use_beam_search": true, "early_stopping": true}"#).unwrap();
        assert_eq!(
            eager.beams.unwrap().early_stopping,
            EarlyStopping::Immediately
        );
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        for body in [
            r#"{"use_beam_search": false, "length_penalty": 1.0, "early_stopping": false}"#,
            r#"{"use_beam_search": null, "length_penalty": null, "early_stopping": null, "best_of": null}"#,
            r#"{"best_of": 1, "temperature": 0, "stream": true}"#,
            r#"{"use_beam_search": true, "n": 2, "allowed_token_ids": [3, 3, 4]}"#,
        ] {
            parse(body).expect(body);
        }
    }

    #[test]
    fn what_is_refused_is_named() {
        for (body, param) in [
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 21}"#, "n"),
            (r#"{"n": 2, "best_of": 1}"#, "best_of"),
            (r#"{"best_of": 0}"#, "best_of"),
            (r#"{"best_of": 21}"#, "best_of"),
            (r#"{"best_of": 1.5}"#, "best_of"),
            (r#"{"best_of": 3, "stream": true}"#, "best_of"),
            (
                r#"{"best_of": 3, "stream": true, "use_beam_search": true}"#,
                "best_of",
            ),
            (r#"{"n": 2, "temperature": 0}"#, "n"),
            (r#"{"best_of": 2, "temperature": 0}"#, "best_of"),
            (r#"{"n": 17, "use_beam_search": true}"#, "n"),
            (
                r#"{"n": 2, "best_of": 17, "use_beam_search": true}"#,
                "best_of",
            ),
            (r#"{"use_beam_search": "yes"}"#, "use_beam_search"),
            (r#"{"use_beam_search": 1}"#, "use_beam_search"),
            (r#"{"length_penalty": 0.9}"#, "length_penalty"),
            (
                r#"{"length_penalty": "1", "use_beam_search": true}"#,
                "length_penalty",
            ),
            (r#"{"early_stopping": true}"#, "early_stopping"),
            (r#"{"early_stopping": "never"}"#, "early_stopping"),
            (
                r#"{"early_stopping": "NEVER", "use_beam_search": true}"#,
                "early_stopping",
            ),
            (
                r#"{"early_stopping": 1, "use_beam_search": true}"#,
                "early_stopping",
            ),
            (
                r#"{"use_beam_search": true, "n": 2, "allowed_token_ids": [3, 3]}"#,
                "allowed_token_ids",
            ),
        ] {
            let error = parse(body).expect_err(body);
            assert_eq!(
                error.param.as_deref(),
                Some(param),
                "{body}: {}",
                error.message
            );
            assert!(error.status.is_client_error() && error.message.contains(param));
        }
    }
}
