//! Rows with guards around them.

use pageloom_paged_attn_kernels::cuda::{Buffer, Device, Rows, RowsMut, Stream};

use super::{Random, TestData, relative_error};

/// Where rows lie in a buffer.
///
/// ```text
/// | lead | row 0 | gap | row 1 | gap | ...
/// ```
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) num_rows: usize,
    pub(crate) width: usize,
    pub(crate) lead: usize,
    pub(crate) gap: usize,
}

/// Shapes on and off every vector: aligned or not, strided or dense, wide, and none.
pub(crate) const PLACES: [Place; 10] = [
    place(3, 1, 0, 0),
    place(3, 7, 1, 2),
    place(2, 8, 0, 8),
    place(4, 63, 3, 1),
    place(2, 64, 8, 0),
    place(3, 576, 0, 16),
    place(2, 576, 1, 0),
    place(2, 576, 0, 1),
    place(2, 4097, 0, 3),
    place(0, 64, 0, 0),
];

pub(crate) const fn place(num_rows: usize, width: usize, lead: usize, gap: usize) -> Place {
    Place {
        num_rows,
        width,
        lead,
        gap,
    }
}

impl Place {
    pub(crate) fn stride(&self) -> usize {
        self.width + self.gap
    }

    /// A buffer of poison, with `rows` in their places.
    pub(crate) fn filled<T: TestData>(&self, rows: &[T]) -> Vec<T> {
        assert_eq!(rows.len(), self.num_rows * self.width);
        let mut data = vec![T::poison(); self.lead + self.num_rows * self.stride() + 5];
        for (i, row) in rows.chunks(self.width).enumerate() {
            data[self.lead + i * self.stride()..][..self.width].copy_from_slice(row);
        }
        data
    }
}

/// Rows on a device, with poison before, between and after them.
pub(crate) struct Strided<T: TestData> {
    pub(crate) place: Place,
    /// What was uploaded, dense.
    pub(crate) values: Vec<T>,
    buffer: Buffer<T>,
}

impl<T: TestData> Strided<T> {
    pub(crate) fn new(stream: &Stream, place: Place, values: Vec<T>) -> Self {
        let data = place.filled(&values);
        let mut buffer = stream.device().alloc(data.len()).unwrap();
        buffer.upload(stream, &data).unwrap();
        Self {
            place,
            values,
            buffer,
        }
    }

    pub(crate) fn random(stream: &Stream, random: &mut Random, place: Place) -> Self {
        let values = random.normals(place.num_rows * place.width);
        let values = values.into_iter().map(T::from_f32).collect();
        Self::new(stream, place, values)
    }

    pub(crate) fn poisoned(stream: &Stream, place: Place) -> Self {
        Self::new(
            stream,
            place,
            vec![T::poison(); place.num_rows * place.width],
        )
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        self.buffer.rows_from(self.place.lead, self.place.stride())
    }

    pub(crate) fn rows_mut(&mut self) -> RowsMut<'_> {
        let (lead, stride) = (self.place.lead, self.place.stride());
        self.buffer.rows_mut_from(lead, stride)
    }

    /// What the rows hold now, dense. Fails if anything around them changed.
    pub(crate) fn download(&self, stream: &Stream) -> Vec<T> {
        let (place, data) = (self.place, self.buffer.download(stream).unwrap());
        let mut rows = Vec::new();
        for i in 0..place.num_rows {
            rows.extend_from_slice(&data[place.lead + i * place.stride()..][..place.width]);
        }
        let guarded = place.filled(&rows);
        assert!(same_bits(&data, &guarded), "written beyond rows: {place:?}");
        rows
    }

    pub(crate) fn f64s(&self) -> Vec<f64> {
        f64s(&self.values)
    }
}

pub(crate) fn f64s<T: TestData>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.to_f32())).collect()
}

pub(crate) fn same_bits<T: TestData>(a: &[T], b: &[T]) -> bool {
    bytemuck::cast_slice::<T, u8>(a) == bytemuck::cast_slice::<T, u8>(b)
}

/// A dense buffer.
pub(crate) fn upload<T: bytemuck::Pod>(device: &Device, stream: &Stream, data: &[T]) -> Buffer<T> {
    let mut buffer = device.alloc(data.len()).unwrap();
    buffer.upload(stream, data).unwrap();
    buffer
}

#[track_caller]
pub(crate) fn assert_close<T: TestData>(found: &[T], expected: &[f64], what: impl std::fmt::Debug) {
    if expected.is_empty() {
        return;
    }
    let error = relative_error(found, expected);
    assert!(error <= T::BOUND, "{what:?}: relative error {error:e}");
}
