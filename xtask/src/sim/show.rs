//! A scenario in few lines: what is as it is by default is left out.

use std::fmt::{self, Debug, Write};

use pageloom_engine::{Engine, Request};

use super::{arrivals::Arrival, scenario::Scenario};

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.config)?;
        writeln!(f, "{:?}", self.executor)?;
        if let Some(guesses) = self.guesses {
            writeln!(f, "{guesses:?}")?;
        }
        for (number, arrival) in self.arrivals.iter().enumerate() {
            writeln!(f, "request {number}: {arrival}")?;
        }
        write!(f, "then again {:?}; events are read every ", self.revisits)?;
        write!(f, "{} steps; all aborted at ", self.drain_every)?;
        write!(f, "{:?}", self.abort_all_at)
    }
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.in_flight { ", in a step" } else { "" };
        let fits = if self.fits { ", fits" } else { "" };
        write!(f, "after {:?}{place}, {:?}{fits}", self.gap, self.prompt)?;
        f.write_str(&differences(&self.request, &Request::new(Vec::new())))?;
        if let Some(abort) = self.abort {
            write!(f, ", aborted {abort:?}")?;
        }
        if let Some(spoil) = self.spoil {
            write!(f, ", spoilt {spoil:?}")?;
        }
        Ok(())
    }
}

fn differences(request: &Request, plain: &Request) -> String {
    let mut words = String::new();
    let mut field = |name, value: &dyn Debug, default: &dyn Debug| {
        let (value, default) = (format!("{value:?}"), format!("{default:?}"));
        if value != default {
            write!(words, ", {name} {value}").expect("a string takes everything");
        }
    };
    macro_rules! fields {
        ($of:expr, $default:expr, $($name:ident)*) => {
            $(field(stringify!($name), &$of.$name, &$default.$name);)*
        };
    }
    fields!(request, plain, n best_of beams max_tokens stop include_stop_in_output ignore_eos);
    fields!(request, plain, skip_special_tokens prompt_logprobs priority cache_salt);
    let (sampling, plain) = (&request.sampling, &plain.sampling);
    fields!(sampling, plain, temperature top_k presence_penalty repetition_penalty);
    fields!(sampling, plain, allowed_token_ids seed stop_token_ids min_tokens logprobs);
    words
}

/// The step in flight, if one is, and what holds the blocks.
pub(crate) fn step(engine: &Engine) -> String {
    let scheduler = engine.scheduler();
    let blocks = scheduler.block_manager().stats();
    let mut lines = match scheduler.plan() {
        None => "no step in flight".to_owned(),
        Some(plan) => {
            let mut lines = format!("step {}, {:?}", plan.step.0, plan.ops);
            for planned in &plan.seqs {
                let blocks = scheduler.blocks(planned.id);
                write!(lines, "\n  {planned:?} {blocks:?}").expect("a string takes everything");
            }
            lines
        }
    };
    write!(lines, "\n  {:?}\n  {blocks:?}", scheduler.stats()).expect("a string takes everything");
    lines
}
