//! A router that knows what is cached from the events alone.

use std::collections::{BTreeMap, BTreeSet};

use pageloom_block_manager::{BlockManager, CacheEvent, ContentId, Parent, Tier};

use super::model::{Contents, Model};

#[derive(Default)]
pub(crate) struct Follower {
    /// All that was ever stored: a name never stands for anything else.
    known: BTreeMap<ContentId, Contents>,
    stored: BTreeMap<Tier, BTreeSet<ContentId>>,
}

impl Follower {
    /// Reads the events since the last call.
    pub(crate) fn follow(&mut self, manager: &mut BlockManager) -> Result<(), String> {
        let is_on = manager.config().events;
        let mut result = Ok(());
        manager.drain_events(|event| {
            if !is_on {
                result = Err(format!("{event:?}, though events are off"));
            }
            if result.is_ok() {
                result = self.apply(event);
            }
        });
        result
    }

    fn apply(&mut self, event: CacheEvent<'_>) -> Result<(), String> {
        match event {
            CacheEvent::Stored {
                tier,
                content,
                parent,
                tokens,
            } => {
                let (ns, mut prefix, parent) = match parent {
                    Parent::Root(ns) => (ns, Vec::new(), None),
                    Parent::Content(id) => {
                        let before = self.known.get(&id);
                        let before = before.ok_or(format!("{event:?} after the unknown"))?;
                        (before.ns, before.prefix.clone(), Some(id.get()))
                    }
                };
                prefix.extend_from_slice(tokens);
                let number = content.get();
                let contents = Contents {
                    ns,
                    prefix,
                    number,
                    parent,
                };
                let known = self.known.entry(content).or_insert(contents.clone());
                if *known != contents {
                    return Err(format!("{event:?}, which was {known:?} before"));
                }
                if !self.stored.entry(tier).or_default().insert(content) {
                    return Err(format!("{event:?}, which is stored there"));
                }
            }
            CacheEvent::Removed { tier, content } => {
                if !self.stored.entry(tier).or_default().remove(&content) {
                    return Err(format!("{event:?}, which is not stored there"));
                }
            }
            CacheEvent::Cleared => self.stored.clear(),
            _ => return Err(format!("{event:?} is new")),
        }
        Ok(())
    }

    /// Whether what the events told is what is published.
    pub(crate) fn compare(&self, model: &Model) -> Result<(), String> {
        for tier in [Tier::Device, Tier::Host] {
            let stored = self.stored.get(&tier).into_iter().flatten();
            let told: Vec<&Contents> = stored.map(|id| &self.known[id]).collect();
            let published = model.published(tier);
            if told != published {
                return Err(format!(
                    "events told of {told:?} on the {tier:?}, where {published:?} are published"
                ));
            }
        }
        Ok(())
    }
}
