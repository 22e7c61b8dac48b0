//! The HTTP routes over an engine whose executor is a simulator: no process, no model.

mod bad_input;
mod chat;
mod completions;
mod leaving;
mod load;
mod ranked;
mod ranked_fields;
mod routes;
mod support;
