//! Attention in tiles of queries, all heads of a tile in one product; see the CPU op for the maths.
//!
//! Only one tile's scores exist at a time, `H × queries × keys`, and keys that no query of the tile sees are left
//! out, so memory grows with the length of a sequence and not with its square. The forward pass saves the
//! log-sum-exp of each row.

use super::{Backward, Op, apply, prepare, wide};
use crate::attention::AttentionShape;
use crate::launch::{self, Scores};
use crate::tape::Saves;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::ops::Range;
use std::sync::OnceLock;

/// Scores alive at once, and queries per tile.
const SCORES: usize = 64 << 20;
const QUERIES: Range<usize> = 16..512;

/// `q (N, H·D)`, `k (N, KV·D)`, `v (N, KV·D)`, checked against `shape`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    for (name, t) in [("q", q), ("k", k), ("v", v)] {
        prepare("attention", name, t)?;
    }
    let op = Attention { shape: shape.clone(), lse: OnceLock::new() };
    apply(&[q, k, v], op, Saves::ALL)
}

struct Attention {
    shape: AttentionShape,
    /// Log-sum-exp of the rows of each tile, `(KV, G·queries, 1)` in f32, in the order of [`AttentionShape::tiles`].
    lse: OnceLock<Vec<Tensor>>,
}

/// Some queries of a sequence and the keys they see, as rows of the batch.
#[derive(Debug, Clone)]
struct Tile {
    queries: Range<usize>,
    keys: Range<usize>,
    /// The first row of the sequence.
    start: usize,
}

impl AttentionShape {
    fn tiles(&self) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for sequence in self.segments.ranges() {
            let (start, len) = (sequence.start, sequence.len());
            let rows = (SCORES / (self.heads * len)).clamp(QUERIES.start, QUERIES.end);
            for first in (0..len).step_by(rows) {
                let queries = first..(first + rows).min(len);
                let keys = self.keys(queries.clone(), len);
                tiles.push(Tile {
                    queries: start + queries.start..start + queries.end,
                    keys: start + keys.start..start + keys.end,
                    start,
                });
            }
        }
        tiles
    }

    /// Rows of query heads, those of one key/value head together: `(rows, H·D)` → `(KV, G·rows, D)`.
    fn queries(&self, x: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
        let (n, d) = (rows.len(), self.head_dim);
        let x = x.narrow(0, rows.start, n)?.reshape((n, self.kv_heads, self.group(), d))?;
        x.permute((1, 2, 0, 3))?.contiguous()?.reshape((self.kv_heads, self.group() * n, d))
    }

    /// The way back: `(KV, G·rows, D)` → `(rows, H·D)`.
    fn back_to_rows(&self, x: &Tensor) -> Result<Tensor> {
        let (kv, g, d) = (self.kv_heads, self.group(), self.head_dim);
        let n = x.dim(1)? / g;
        x.reshape((kv, g, n, d))?.permute((2, 0, 1, 3))?.contiguous()?.reshape((n, self.heads * d))
    }

    /// `(rows, KV·D)` → `(KV, rows, D)`
    fn keys_of(&self, x: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
        let n = rows.len();
        x.narrow(0, rows.start, n)?.reshape((n, self.kv_heads, self.head_dim))?.transpose(0, 1)?.contiguous()
    }

    /// 0 for keys a query sees and −∞ for the others, `(1, 1, queries, keys)`; `None` when every query sees all.
    fn mask(&self, tile: &Tile, device: &Device) -> Result<Option<Tensor>> {
        let (queries, keys) = (tile.queries.len(), tile.keys.len());
        if !self.causal {
            return Ok(None);
        }
        let mut mask = vec![f32::NEG_INFINITY; queries * keys];
        for (query, row) in tile.queries.clone().zip(mask.chunks_exact_mut(keys.max(1))) {
            let at = query - tile.start;
            let seen = self.keys(at..at + 1, tile.keys.end - tile.start);
            let (from, to) = (seen.start + tile.start - tile.keys.start, seen.end + tile.start - tile.keys.start);
            if let Some(seen) = row.get_mut(from..to) {
                seen.fill(0.0);
            }
        }
        Tensor::from_vec(mask, (1, 1, queries, keys), device).map(Some)
    }

    fn kernel(&self, tile: &Tile) -> Scores {
        Scores {
            queries: tile.queries.len(),
            first_query: tile.queries.start - tile.start,
            first_key: tile.keys.start - tile.start,
            causal: self.causal,
            window: self.window,
            scale: self.scale(),
            cap: self.soft_cap,
        }
    }

    /// Scores in f32, scaled and capped but not masked: `(KV, G·queries, keys)`.
    fn scores(&self, products: &Tensor) -> Result<Tensor> {
        let scores = (wide(products)? * f64::from(self.scale()))?;
        match self.soft_cap.map(f64::from) {
            Some(cap) => (scores / cap)?.tanh()? * cap,
            None => Ok(scores),
        }
    }

    fn masked(&self, scores: &Tensor, tile: &Tile) -> Result<Tensor> {
        let Some(mask) = self.mask(tile, scores.device())? else { return Ok(scores.clone()) };
        let (queries, keys) = (tile.queries.len(), tile.keys.len());
        scores.reshape((self.kv_heads, self.group(), queries, keys))?.broadcast_add(&mask)?.reshape(scores.shape())
    }
}

impl AttentionShape {
    /// Probabilities and log-sum-exp `(KV, G·queries, 1)` from the products of queries and keys.
    fn softmax(&self, products: &Tensor, tile: &Tile) -> Result<[Tensor; 2]> {
        if let Some(done) = launch::attention_softmax(products, self.kernel(tile))? {
            return Ok(done);
        }
        let scores = self.masked(&self.scores(products)?, tile)?;
        let max = scores.max_keepdim(2)?;
        let weights = scores.broadcast_sub(&max)?.exp()?;
        let sum = weights.sum_keepdim(2)?;
        Ok([weights.broadcast_div(&sum)?.to_dtype(products.dtype())?, (max + sum.log()?)?])
    }

    /// The probabilities again, and the gradient of the products given `dp`, that of the probabilities.
    fn slopes(&self, products: &Tensor, dp: &Tensor, lse: &Tensor, delta: &Tensor, tile: &Tile) -> Result<[Tensor; 2]> {
        if let Some(done) = launch::attention_backward(products, dp, lse, delta, self.kernel(tile))? {
            return Ok(done);
        }
        let (scores, of) = (self.scores(products)?, products.dtype());
        let p = self.masked(&scores, tile)?.broadcast_sub(lse)?.exp()?;
        let ds = (&p * wide(dp)?.broadcast_sub(delta)?)?;
        let ds = match self.soft_cap.map(f64::from) {
            Some(cap) => (ds * (1.0 - (scores / cap)?.sqr()?)?)?,
            None => ds,
        };
        Ok([p.to_dtype(of)?, (ds * f64::from(self.scale()))?.to_dtype(of)?])
    }
}

/// Gradients of a sequence's keys and values, `(KV, T, D)` in f32, because tiles add to them.
struct Sum {
    sequence: Range<usize>,
    dk: Tensor,
    dv: Tensor,
}

impl Sum {
    fn new(shape: &AttentionShape, start: usize, device: &Device) -> Result<Self> {
        let sequence = shape.segments.ranges().find(|s| s.start == start).unwrap_or_default();
        let zeros = || Tensor::zeros((shape.kv_heads, sequence.len(), shape.head_dim), DType::F32, device);
        Ok(Self { dk: zeros()?, dv: zeros()?, sequence })
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [q, k, v] = inputs else { bail!("attention: {} inputs", inputs.len()) };
        let shape = &self.shape;
        let (mut out, mut saved) = (Vec::new(), Vec::new());
        for tile in shape.tiles() {
            let (qt, kt) = (shape.queries(q, &tile.queries)?, shape.keys_of(k, &tile.keys)?);
            let [p, lse] = shape.softmax(&qt.matmul(&kt.t()?)?, &tile)?;
            out.push(shape.back_to_rows(&p.matmul(&shape.keys_of(v, &tile.keys)?)?)?);
            saved.push(lse);
        }
        if self.lse.set(saved).is_err() {
            bail!("attention: the same op ran forward twice");
        }
        Tensor::cat(&out, 0)
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (q, k, v, g) = (saved.input(0)?, saved.input(1)?, saved.input(2)?, saved.grad);
        let (shape, of) = (&self.shape, q.dtype());
        let Some(lse) = self.lse.get() else { bail!("attention: backward ran before forward") };
        let mut dq = Vec::new();
        let mut sums: Vec<Sum> = Vec::new();
        for (tile, lse) in shape.tiles().iter().zip(lse) {
            let (qt, gt) = (shape.queries(q, &tile.queries)?, shape.queries(g, &tile.queries)?);
            let (kt, vt) = (shape.keys_of(k, &tile.keys)?, shape.keys_of(v, &tile.keys)?);
            let ot = shape.queries(saved.output, &tile.queries)?;
            let delta = (wide(&gt)? * wide(&ot)?)?.sum_keepdim(2)?; // (KV, G·queries, 1)
            let [p, ds] = shape.slopes(&qt.matmul(&kt.t()?)?, &gt.matmul(&vt.t()?)?, lse, &delta, tile)?;
            dq.push(shape.back_to_rows(&ds.matmul(&kt)?)?);
            let dk = wide(&ds.transpose(1, 2)?.contiguous()?.matmul(&qt)?)?; // (KV, keys, D)
            let dv = wide(&p.transpose(1, 2)?.contiguous()?.matmul(&gt)?)?;
            if sums.last().is_none_or(|sum| !sum.sequence.contains(&tile.start)) {
                sums.push(Sum::new(shape, tile.start, q.device())?);
            }
            if let Some(sum) = sums.last() {
                let at = tile.keys.start - sum.sequence.start;
                add_rows(&sum.dk, &dk, at)?;
                add_rows(&sum.dv, &dv, at)?;
            }
        }
        let whole = |of_sequence: fn(&Sum) -> &Tensor| -> Result<Tensor> {
            let rows = sums.iter().map(|s| of_sequence(s).transpose(0, 1)?.contiguous()?.flatten_from(1)); // (T, KV·D)
            Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?.to_dtype(of)
        };
        let (dk, dv) = (whole(|s| &s.dk)?, whole(|s| &s.dv)?);
        Ok(vec![Some(Tensor::cat(&dq, 0)?), Some(dk), Some(dv)])
    }
}

/// Adds `share (KV, keys, D)` to `sum (KV, T, D)` from row `at` on, in place.
fn add_rows(sum: &Tensor, share: &Tensor, at: usize) -> Result<()> {
    let before = sum.narrow(1, at, share.dim(1)?)?;
    sum.slice_set(&(before + share)?.contiguous()?, 1, at)
}
