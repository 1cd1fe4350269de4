//! How a product is cut into tiles of the vocabulary and blocks of tokens.

use tch::{Device, Kind, Tensor};

use super::tile::Span;

/// What libtorch's products run well on, and what fits a processor's cache.
const COLUMNS: i64 = 2048;
const ROWS: i64 = 1024;

/// What logits are computed in.
pub(super) fn wide(weight: &Tensor) -> Kind {
    if weight.kind() == Kind::Double { Kind::Double } else { Kind::Float }
}

/// How a product is cut so that it stays within a budget.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    tokens: i64,
    vocab: i64,
    pub rows: i64,
    pub columns: i64,
    /// Tiles of logits over all tokens that are kept for the backward pass.
    pub kept: i64,
    /// Kind and device of logits.
    pub options: (Kind, Device),
}

impl Plan {
    /// `tiles` live at once, the one of logits included.
    pub fn new(budget: u64, tokens: i64, weight: &Tensor, tiles: i64) -> Self {
        let kind = wide(weight);
        let (options, size) = ((kind, weight.device()), weight.size());
        let bytes = kind.elt_size_in_bytes() as i64;
        let budget = i64::try_from(budget).unwrap_or(i64::MAX) / bytes;
        let (mut rows, mut columns) = (ROWS.min(tokens), COLUMNS.min(size[0]));
        // In half precision the tile's weights, their gradient and the block of states are widened.
        let widened = |rows: i64, columns: i64| {
            if kind == weight.kind() { 0 } else { (rows + 2 * columns) * size[1] }
        };
        let needed = |rows: i64, columns: i64| tiles * rows * columns + widened(rows, columns);
        // Products stay efficient longer with few columns than with few rows.
        while needed(rows, columns) > budget && (rows > 1 || columns > 1) {
            if columns > 256 || rows <= 32 {
                columns = (columns / 2).max(1)
            } else {
                rows = (rows / 2).max(1)
            }
            if columns == 1 && rows > 1 {
                rows = (rows / 2).max(1);
            }
        }
        let kept = (budget - needed(rows, columns)).max(0) / (tokens * columns);
        Self { tokens, vocab: size[0], rows, columns, kept, options }
    }

    pub fn tiles(&self) -> impl Iterator<Item = Span> + use<> {
        Span::parts(self.vocab, self.columns)
    }

    pub fn blocks(&self) -> impl Iterator<Item = Span> + use<> {
        Span::parts(self.tokens, self.rows)
    }

    pub fn scratch(&self) -> Tensor {
        Tensor::empty([self.rows * self.columns], self.options)
    }

    /// A tile of that memory.
    pub fn tile(scratch: &Tensor, rows: Span, columns: Span) -> Tensor {
        scratch.narrow(0, 0, rows.length * columns.length).view([rows.length, columns.length])
    }
}
