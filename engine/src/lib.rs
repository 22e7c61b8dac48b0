//! Pageloom's engine: scheduling, execution, tokenisation and streaming.
#![forbid(unsafe_code)]

mod request;

pub use request::{
    FinishReason, GeneratedToken, OutputDelta, Request, RequestEvent, RequestId, StopCause,
};
