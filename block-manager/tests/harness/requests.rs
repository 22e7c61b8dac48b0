//! Sequences that come, fork, shrink and go.

use pageloom_block_manager::{Namespace, PrefixHit, TableId, Tier, TokenId};

use super::{Fault, Seq, World, agree};

/// Sequences open at once.
const MOST: usize = 8;

impl World {
    /// One of a few prompts that share prefixes, and whose it is.
    fn prompt(&self, family: u8, len: u8, ns: u8) -> (Vec<TokenId>, Namespace) {
        let family = u32::from(family % 4);
        // Family f shares its first f blocks with all later families.
        let branch = family as usize * self.setup.config.block_size;
        let token = |i: usize| (if i < branch { 0 } else { family }) + i as u32 % 3;
        let prompt = (0..usize::from(len % 24)).map(token).collect();
        (prompt, Namespace(u64::from(ns.is_multiple_of(4))))
    }

    fn given(&self, ns: Namespace) -> Namespace {
        match self.setup.fault {
            Fault::NamespaceIgnored => Namespace(0),
            _ => ns,
        }
    }

    /// What opening will find, which the model must say too.
    fn probe(&self, query: &[TokenId], ns: Namespace) -> Result<PrefixHit, String> {
        let probe = self.manager.probe(query, ns);
        if let Some(model) = &self.model {
            let hits = model.usable(query, ns);
            let on_host = hits.iter().filter(|hit| hit.0 == Tier::Host).count();
            let size = self.setup.config.block_size;
            agree("tokens hit", hits.len() * size, probe.num_tokens)?;
            agree("blocks hit", hits.len(), probe.num_blocks)?;
            agree("host blocks hit", on_host, probe.num_host_blocks)?;
            let num_taken = model.num_taken(&hits);
            agree("available hit", num_taken, probe.num_available_blocks)?;
        }
        Ok(probe)
    }

    fn start(&mut self, id: TableId, ns: Namespace, prompt: &[TokenId], hit: usize) {
        self.seqs.push(Seq {
            id,
            ns,
            tokens: prompt[..hit].to_vec(),
            num_passed: 0,
            prompt: prompt[hit..].iter().copied().collect(),
            planned: Vec::new(),
            in_flight: false,
            left: None,
        });
    }

    pub(super) fn open(&mut self, family: u8, len: u8, ns: u8, lookup: bool) -> Result<(), String> {
        if self.seqs.len() >= MOST {
            return Ok(());
        }
        let (prompt, ns) = self.prompt(family, len, ns);
        let given_ns = self.given(ns);
        let query: &[TokenId] = if lookup { &prompt } else { &[] };
        let probe = self.probe(query, given_ns)?;
        let available = self.manager.num_available_blocks();
        let (id, hit) = self.manager.open(query, given_ns);
        if hit != probe.num_tokens || hit > prompt.len().saturating_sub(1) {
            return Err(format!("opened with {hit} tokens, probe was {probe:?}"));
        }
        if available - self.manager.num_available_blocks() != probe.num_available_blocks {
            return Err(format!("opening took other blocks than {probe:?} said"));
        }
        if let Some(model) = &mut self.model {
            model.open(id, query, ns);
        }
        self.start(id, ns, &prompt, hit);
        self.unpin_swaps();
        Ok(())
    }

    pub(super) fn admit(
        &mut self,
        [family, len, ns]: [u8; 3],
        keep: u8,
        extra: u8,
    ) -> Result<(), String> {
        if self.seqs.len() >= MOST {
            return Ok(());
        }
        let (prompt, ns) = self.prompt(family, len, ns);
        let (given_ns, keep) = (self.given(ns), usize::from(keep % 5));
        let num_tokens = prompt.len() + usize::from(extra % 6);
        let probe = self.probe(&prompt, given_ns)?;
        let result = self.manager.admit(&prompt, num_tokens, given_ns, keep);
        if let Some(model) = &mut self.model {
            let expected = model.admits(&prompt, num_tokens, ns, keep);
            agree("admit", expected, result.map(|_| ()))?;
            if let Ok((id, hit)) = result {
                model.open(id, &prompt, ns);
                agree("slots", Ok(()), model.reserve(id, num_tokens - hit))?;
            }
        }
        let Ok((id, hit)) = result else {
            return Ok(());
        };
        if hit != probe.num_tokens {
            return Err(format!("admitted with {hit} tokens, probe was {probe:?}"));
        }
        if self.manager.num_reserved(id) != num_tokens - hit {
            return Err(format!("admitted without slots for {num_tokens} tokens"));
        }
        self.start(id, ns, &prompt, hit);
        let seq = self.seqs.last_mut().expect("just started");
        seq.planned = prompt[hit..].to_vec();
        seq.planned.resize(num_tokens - hit, u32::from(extra) % 3);
        self.unpin_swaps();
        Ok(())
    }

    /// What was planned or computed for the sequence and not committed is void.
    pub(super) fn forget_plan(&mut self, at: usize) {
        self.seqs[at].planned.clear();
        self.seqs[at].in_flight = false;
    }

    pub(super) fn fork(&mut self, seq: u8) {
        let Some(at) = self.pick(seq).filter(|_| self.seqs.len() < MOST) else {
            return;
        };
        let parent = &self.seqs[at];
        let id = self.manager.fork(parent.id);
        if let Some(model) = &mut self.model {
            model.fork(parent.id, id);
        }
        let child = Seq {
            id,
            planned: Vec::new(),
            in_flight: false,
            ..parent.clone()
        };
        if !parent
            .tokens
            .len()
            .is_multiple_of(self.setup.config.block_size)
        {
            self.forget_plan(at);
        }
        self.seqs.push(child);
    }

    pub(super) fn truncate(&mut self, seq: u8, keep: u8) {
        let Some(at) = self.pick(seq) else {
            return;
        };
        let seq = &mut self.seqs[at];
        let num_passed = seq.num_passed * self.setup.config.block_size;
        let keep = num_passed + usize::from(keep) % (seq.tokens.len() - num_passed + 1);
        self.manager.truncate(seq.id, keep);
        if let Some(model) = &mut self.model {
            model.truncate(seq.id, keep);
        }
        let cut = seq.tokens.split_off(keep);
        if !seq.prompt.is_empty() {
            cut.into_iter()
                .rev()
                .for_each(|token| seq.prompt.push_front(token));
        }
        self.forget_plan(at);
        let num_blocks = self.num_blocks(&self.seqs[at]);
        if let Some((_, blocks)) = &mut self.seqs[at].left {
            blocks.truncate(num_blocks);
        }
    }

    pub(super) fn release_before(&mut self, seq: u8, position: u8) -> Result<(), String> {
        let group = self.group(seq, 1, |seq| seq.left.is_none());
        let Some(&at) = group.first() else {
            return Ok(());
        };
        let seq = &mut self.seqs[at];
        let position = usize::from(position) % (seq.tokens.len() + 1);
        let num_passed = seq.num_passed.max(position / self.setup.config.block_size);
        let num_released = self.manager.release_before(seq.id, position);
        agree("blocks passed", num_passed - seq.num_passed, num_released)?;
        seq.num_passed = num_passed;
        if let Some(model) = &mut self.model {
            let expected = model.release_before(seq.id, position);
            agree("blocks passed", expected, num_released)?;
        }
        Ok(())
    }

    pub(super) fn release(&mut self, seq: u8) {
        if let Some(at) = self.pick(seq) {
            let seq = self.seqs.swap_remove(at);
            self.manager.release(seq.id);
            if let Some(model) = &mut self.model {
                model.release(seq.id);
            }
        }
    }
}
