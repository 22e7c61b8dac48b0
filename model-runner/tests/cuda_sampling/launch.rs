//! The same draws on a device.

use pageloom_model_runner::{RowError, TokenLogprobs};
use pageloom_paged_attn_kernels::cuda::sample::{
    LogprobRow, LogprobToken, SampleBatch, SampleFault, SampleOutput, Sampling,
};
use pageloom_paged_attn_kernels::cuda::{Buffer, Data, Device, Stream};

use crate::case::{Case, Drawn};

/// The emulator, and the first GPU where there is one, which `PAGELOOM_CUDA_DEVICE=gpu` insists on.
pub(crate) fn on_each(test: impl Fn(&Device, &Stream)) {
    let mut devices = vec![Device::emulated()];
    match Device::open(0) {
        Ok(gpu) => devices.push(gpu),
        Err(error) => {
            let wanted = std::env::var("PAGELOOM_CUDA_DEVICE").unwrap_or_default();
            assert_ne!(wanted, "gpu", "{error}");
            eprintln!("on the emulator only: {error}");
        }
    }
    for device in devices {
        let stream = device.new_stream().unwrap();
        test(&device, &stream);
    }
}

/// Where the rows of logits lie.
pub(crate) struct Launch {
    pub(crate) logits_rows: Vec<usize>,
    pub(crate) stride: usize,
}

impl Launch {
    pub(crate) fn new(num_cases: usize, stride: usize) -> Self {
        // Rows in another order than the draws.
        let logits_rows = (0..num_cases).rev().collect();
        Self {
            logits_rows,
            stride,
        }
    }

    pub(crate) fn upload<T: Data>(
        &self,
        stream: &Stream,
        cases: &[Case],
        from: impl Fn(f32) -> T,
    ) -> Buffer<T> {
        // What lies between the rows must not be read.
        let mut data = vec![from(f32::NAN); self.stride * cases.len()];
        for (case, row) in cases.iter().zip(&self.logits_rows) {
            let to = &mut data[row * self.stride..][..case.logits.len()];
            to.iter_mut()
                .zip(&case.logits)
                .for_each(|(y, &x)| *y = from(x));
        }
        let mut buffer = stream.device().alloc(data.len()).unwrap();
        buffer.upload(stream, &data).unwrap();
        buffer
    }

    pub(crate) fn prepare(&self, stream: &Stream, sampling: &mut Sampling, cases: &[Case]) {
        let rows: Vec<_> = cases
            .iter()
            .zip(&self.logits_rows)
            .map(|(case, &row)| case.row(row))
            .collect();
        let logprobs: Vec<_> = (0..cases.len())
            .filter_map(|i| {
                Some(LogprobRow {
                    logits_row: self.logits_rows[i],
                    token: LogprobToken::Drawn(i),
                    num_top: cases[i].params.logprobs?,
                })
            })
            .collect();
        let batch = SampleBatch {
            vocab_size: cases[0].logits.len(),
            rows: &rows,
            logprobs: &logprobs,
        };
        sampling.prepare(stream, &batch).unwrap();
    }
}

pub(crate) fn results(cases: &[Case], output: SampleOutput) -> Vec<Drawn> {
    let error = |fault| match fault {
        SampleFault::NotANumber { token } => RowError::NotANumber { token },
        SampleFault::NothingAllowed => RowError::NothingAllowed,
    };
    let mut logprobs = output.logprobs.into_iter();
    let mut result = |(case, token): (&Case, Result<u32, SampleFault>)| {
        let logprobs = case.params.logprobs.map(|_| logprobs.next().unwrap());
        let token = token.map_err(error)?;
        let logprobs = logprobs.map(|row| {
            let row = row.unwrap();
            assert_eq!(row.token, token);
            TokenLogprobs {
                logprob: row.logprob,
                rank: row.rank,
                top: row.top,
            }
        });
        Ok((token, logprobs))
    };
    assert_eq!(output.tokens.len(), cases.len());
    cases.iter().zip(output.tokens).map(&mut result).collect()
}

pub(crate) fn on_device<T: Data>(
    stream: &Stream,
    cases: &[Case],
    from: impl Fn(f32) -> T,
) -> Vec<Drawn> {
    let launch = Launch::new(cases.len(), cases[0].logits.len() + 3);
    let logits = launch.upload(stream, cases, from);
    let mut sampling = Sampling::new(stream.device()).unwrap();
    launch.prepare(stream, &mut sampling, cases);
    sampling.run(stream, logits.rows(launch.stride)).unwrap();
    results(cases, sampling.output(stream).unwrap())
}

/// Compares and returns how many draws gave a token.
pub(crate) fn assert_same<T: Data>(
    stream: &Stream,
    cases: &[Case],
    from: impl Fn(f32) -> T,
) -> usize {
    let found = on_device(stream, cases, from);
    for (i, (case, found)) in cases.iter().zip(&found).enumerate() {
        let want = case.on_cpu();
        let (vocab_size, params) = (case.logits.len(), &case.params);
        assert_eq!(found, &want, "case {i}, {vocab_size} tokens, {params:?}");
    }
    found.iter().filter(|drawn| drawn.is_ok()).count()
}

pub(crate) fn round<T>(cases: &mut [Case], rounded: impl Fn(f32) -> T, back: impl Fn(T) -> f32) {
    for x in cases.iter_mut().flat_map(|case| &mut case.logits) {
        // Some of the huge ones become infinite.
        *x = back(rounded(x.clamp(-6e4, 6e4)));
    }
}
