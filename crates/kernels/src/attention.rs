//! Self-attention with grouped key/value heads, over sequences laid end to end.
//!
//! For each sequence and head: `S = s Q Kᵀ` with `s = 1/√D` unless told otherwise, `P = softmax(S)` over the
//! keys a query sees, `O = P V`. Query head `h` uses key/value head `h / (H / KV)`. A query sees its whole
//! sequence, or positions up to its own (causal), or only the last few of those (sliding window, Beltagy et
//! al., arXiv 2004.05150). A soft cap `c` (Gemma 2, arXiv 2408.00118) replaces `S` by `c tanh(S / c)`.
//!
//! The scores exist only for one tile of [`BLOCK`] queries at a time, and only for keys that some query of
//! the tile sees. The forward pass saves the log-sum-exp of each row; the backward pass makes the tile again
//! from it (Dao, arXiv 2307.08691): `δ = Σ g ⊙ O` per row, `dV = Pᵀ g`, `dP = g Vᵀ`,
//! `dS = P ⊙ (dP − δ)`, times `1 − (S / c)²` under a cap, `dQ = s dS K`, `dK = s dSᵀ Q`.
//!
//! Work is cut by shape alone, and the sums over queries that make `dK` and `dV` run in a fixed order, so
//! results do not depend on timing.

#![expect(clippy::indexing_slicing, clippy::as_conversions, reason = "offsets of checked shapes")]

use crate::buffer::{for_each_task, input, prepare, tensor, with_data};
use crate::matmul::{Lines, Mat, MatMut, Right, Threads, Tiles, Write, gemm};
use crate::portable;
use crate::segments::Segments;
use crate::simd;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::OnceLock;

/// Queries per tile. A multiple of the rows that the inner kernels of products work on (6, 12).
const BLOCK: usize = 48;

/// A sequence's backward pass is cut into at most this many stripes of queries, that add up their own share of `dK`
/// and `dV`: else one sequence with few key/value heads would keep few threads busy, or some of them longer.
const MAX_STRIPES: usize = 8;
/// A long sequence gets a stripe for every so many queries,
const STRIPE: usize = 1024;
/// and a shorter one as many as make this number of tasks,
const TASKS: usize = 16;
/// of at least so many queries.
const MIN_STRIPE: usize = 256;

/// Heads and sequences of one attention call.
#[derive(Debug, Clone)]
pub struct AttentionShape {
    /// Query heads (`H`).
    pub heads: usize,
    /// Key/value heads (`KV`), a divisor of `heads`.
    pub kv_heads: usize,
    /// Floats per head (`D`).
    pub head_dim: usize,
    /// Where the sequences begin.
    pub segments: Segments,
    /// Whether a query sees no key after its own position.
    pub causal: bool,
    /// A query sees this many keys, its own the last; only causal attention has a window.
    pub window: Option<usize>,
    /// Bound of the scores.
    pub soft_cap: Option<f32>,
    /// Factor of the scores; `1/√D` when `None`.
    pub scale: Option<f32>,
}

impl AttentionShape {
    /// Plain causal attention.
    #[must_use]
    pub const fn causal(heads: usize, kv_heads: usize, head_dim: usize, segments: Segments) -> Self {
        Self { heads, kv_heads, head_dim, segments, causal: true, window: None, soft_cap: None, scale: None }
    }
}

/// `q (N, H·D)`, `k (N, KV·D)`, `v (N, KV·D)` → `(N, H·D)`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    const OP: &str = "attention";
    let AttentionShape { heads, kv_heads, head_dim, ref segments, .. } = *shape;
    let n = segments.tokens();
    if n * heads * kv_heads * head_dim == 0 || !heads.is_multiple_of(kv_heads) {
        bail!("{OP}: {n} tokens, {heads} heads, {kv_heads} key/value heads of size {head_dim} do not fit together");
    }
    if shape.window.is_some_and(|w| w == 0 || !shape.causal) {
        bail!("{OP}: a window of {:?} keys; expected a causal one of at least 1", shape.window);
    }
    if let Some(odd) = [shape.soft_cap, shape.scale].into_iter().flatten().find(|x| !(x.is_finite() && *x > 0.0)) {
        bail!("{OP}: a soft cap or scale of {odd}; expected a positive number");
    }
    if q.dims() != [n, heads * head_dim] || k.dims() != [n, kv_heads * head_dim] || v.dims() != k.dims() {
        bail!(
            "{OP}: q is {:?}, k is {:?}, v is {:?}; expected ({n}, {}) and twice ({n}, {})",
            q.dims(),
            k.dims(),
            v.dims(),
            heads * head_dim,
            kv_heads * head_dim
        );
    }
    if portable::is_portable(q) {
        return portable::attention::attention(q, k, v, shape);
    }
    let op = Attention { shape: shape.clone(), lse: OnceLock::new() };
    tape::apply3([&prepare(OP, "q", q)?, &prepare(OP, "k", k)?, &prepare(OP, "v", v)?], op, Saves::ALL)
}

struct Attention {
    shape: AttentionShape,
    /// Log-sum-exp of each row of scores, `(H, N)`.
    lse: OnceLock<Vec<f32>>,
}

/// A tile of queries of one sequence: `rows` from `start + first` on, looking at `keys` keys from
/// `start + from` on.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    first: usize,
    rows: usize,
    from: usize,
    keys: usize,
    /// So many of them no query sees; they are there because keys are packed in groups.
    unseen: usize,
}

impl Block {
    fn row(self) -> usize {
        self.start + self.first
    }

    /// Keys of the sequence.
    fn seen(self) -> Range<usize> {
        self.from..self.from + self.keys
    }
}

impl AttentionShape {
    pub(crate) fn scale(&self) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (self.head_dim as f32).sqrt())
    }

    /// Keys that some of the queries see, in a sequence of `len`.
    pub(crate) fn keys(&self, queries: Range<usize>, len: usize) -> Range<usize> {
        if !self.causal {
            return 0..len;
        }
        let from = self.window.map_or(0, |window| (queries.start + 1).saturating_sub(window));
        from..queries.end
    }

    /// [`AttentionShape::keys`] and those before, to where packed keys can be cut.
    fn span(&self, queries: Range<usize>, len: usize) -> Range<usize> {
        let keys = self.keys(queries, len);
        keys.start / Right::ALIGN * Right::ALIGN..keys.end
    }

    /// Columns of a tile's row `i` that its query sees.
    fn live(&self, block: Block, i: usize) -> Range<usize> {
        let query = block.first + i;
        let keys = self.keys(query..query + 1, block.from + block.keys);
        keys.start - block.from..keys.end - block.from
    }

    /// The tiles of some queries of a sequence.
    fn blocks<'a>(&'a self, sequence: &Range<usize>, queries: Range<usize>) -> impl Iterator<Item = Block> + use<'a> {
        let (start, len, end) = (sequence.start, sequence.len(), queries.end);
        queries.step_by(BLOCK).map(move |first| {
            let rows = BLOCK.min(end - first);
            let keys = self.span(first..first + rows, len);
            let unseen = self.keys(first..first + rows, len).start - keys.start;
            Block { start, first, rows, from: keys.start, keys: keys.len(), unseen }
        })
    }

    /// Query heads per key/value head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Scores of the largest tile.
    fn largest(&self) -> usize {
        self.segments.ranges().flat_map(|r| self.blocks(&r, 0..r.len())).map(|b| b.rows * b.keys).max().unwrap_or(0)
    }

    /// Writes `O (N, H·D)`; returns the log-sum-exp `(H, N)`.
    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) -> Vec<f32> {
        let (d, n) = (self.head_dim, self.segments.tokens());
        let (q, k, v) = (Mat::new(q, self.heads * d), Mat::new(k, self.kv_heads * d), Mat::new(v, self.kv_heads * d));
        let mut lse = vec![0.0; self.heads * n];
        let (out, lse_tiles) = (Tiles::new(out, self.heads * d), Tiles::new(&mut lse, n));
        let sequences: Vec<Range<usize>> = self.segments.ranges().collect();
        let packed: Vec<(Right<'_>, Right<'_>)> = (0..sequences.len() * self.kv_heads)
            .into_par_iter()
            .map(|i| {
                let (rows, kv) = (&sequences[i / self.kv_heads], i % self.kv_heads);
                let k = k.block(rows.start, rows.len(), kv * d, d);
                let v = v.block(rows.start, rows.len(), kv * d, d);
                (Right::new(k.t(), Lines::default()), Right::new(v, Lines::default()))
            })
            .collect();
        let mut tasks: Vec<(usize, Block)> = Vec::new();
        for (i, sequence) in sequences.iter().enumerate() {
            tasks.extend(self.blocks(sequence, 0..sequence.len()).map(|b| (i, b)));
        }
        tasks.sort_by_key(|(_, b)| std::cmp::Reverse(b.keys));
        let largest = self.largest();
        for_each_task(
            tasks.len() * self.heads,
            || vec![0.0; largest],
            |scores, task| {
                let ((sequence, block), head) = (tasks[task / self.heads], task % self.heads);
                let keys = block.keys;
                let (packed_k, packed_v) = &packed[sequence * self.kv_heads + head / self.group()];
                let scores = &mut scores[..block.rows * keys];
                let qb = q.block(block.row(), block.rows, head * d, d);
                let mut dst = MatMut::new(scores, keys);
                packed_k.multiply(&mut dst, Write::Replace, self.scale(), qb, (0..d, block.seen()));
                // SAFETY: every (block, head) owns its rectangle of both outputs.
                let (mut o, mut lse) = unsafe {
                    (out.tile(block.row(), block.rows, head * d, d), lse_tiles.tile(head, 1, block.row(), block.rows))
                };
                for ((i, row), lse) in scores.chunks_exact_mut(keys).enumerate().zip(lse.row(0)) {
                    let live = self.live(block, i);
                    row[..live.start].fill(0.0);
                    row[live.end..].fill(0.0);
                    let live = &mut row[live];
                    if let Some(cap) = self.soft_cap {
                        simd::soft_cap(live, cap);
                    }
                    let max = simd::max(live);
                    let sum = simd::exp_sum(live, max);
                    simd::scale(live, 1.0 / sum);
                    *lse = max + sum.ln();
                }
                let p = Mat::new(scores, keys).block(0, block.rows, block.unseen, keys - block.unseen);
                packed_v.multiply(&mut o, Write::Replace, 1.0, p, (block.from + block.unseen..block.from + keys, 0..d));
            },
        );
        lse
    }
}

/// What the backward pass reads. All row-major views.
struct Saved<'a> {
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    out: Mat<'a>,
    grad: Mat<'a>,
    lse: &'a [f32],
}

/// What one thread keeps from task to task of the backward pass.
struct Scratch {
    scores: Vec<f32>,
    dp: Vec<f32>,
    /// Packed keys and values.
    packed: [Lines; 3],
}

/// One stripe of queries of one sequence, and the keys they see, counted from the sequence's first.
struct Stripe {
    sequence: Range<usize>,
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Stripe {
    fn key(&self) -> usize {
        self.sequence.start + self.keys.start
    }
}

impl AttentionShape {
    /// Cuts the sequences into stripes of about equal work, last queries first within a sequence.
    fn stripes(&self) -> Vec<Stripe> {
        let mut stripes = Vec::new();
        let wanted = TASKS.div_ceil(self.kv_heads * self.segments.count().max(1));
        for sequence in self.segments.ranges() {
            let len = sequence.len();
            let count = (len / STRIPE).max(wanted.min(len / MIN_STRIPE)).clamp(1, MAX_STRIPES);
            // Work up to a position grows with its square where queries see all before them. Boundaries
            // fall between tiles.
            let power = if self.causal && self.window.is_none() { 0.5 } else { 1.0 };
            let boundary = |i: usize| match i {
                i if i == count => len,
                i => ((len as f64 * (i as f64 / count as f64).powf(power)) as usize / BLOCK * BLOCK).min(len),
            };
            let cut = (0..count).rev().map(|i| boundary(i)..boundary(i + 1)).filter(|queries| !queries.is_empty());
            stripes.extend(cut.map(|queries| {
                let keys = self.span(queries.clone(), len);
                Stripe { sequence: sequence.clone(), queries, keys }
            }));
        }
        stripes
    }

    /// Gradients of `q`, `k`, `v` given the saved tensors.
    fn backward(&self, saved: &Saved<'_>) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (d, n) = (self.head_dim, self.segments.tokens());
        let (q_width, kv_width) = (self.heads * d, self.kv_heads * d);
        let (mut dq, mut dk, mut dv) = (vec![0.0; n * q_width], vec![0.0; n * kv_width], vec![0.0; n * kv_width]);
        let stripes = self.stripes();
        let largest = self.largest();
        // Every stripe but a sequence's first in the list has its own dK and dV.
        let shares: Vec<OnceLock<(Vec<f32>, Vec<f32>)>> =
            (0..stripes.len() * self.kv_heads).map(|_| OnceLock::new()).collect();
        let (dq_tiles, dk_tiles, dv_tiles) =
            (Tiles::new(&mut dq, q_width), Tiles::new(&mut dk, kv_width), Tiles::new(&mut dv, kv_width));
        let owns_output = |i: usize| i == 0 || stripes[i - 1].sequence != stripes[i].sequence;
        let mut order: Vec<usize> = (0..stripes.len()).collect();
        let work = |s: &Stripe| self.blocks(&s.sequence, s.queries.clone()).map(|b| b.rows * b.keys).sum::<usize>();
        order.sort_by_cached_key(|&i| std::cmp::Reverse(work(&stripes[i])));
        for_each_task(
            order.len() * self.kv_heads,
            || Scratch { scores: vec![0.0; largest], dp: vec![0.0; largest], packed: Default::default() },
            |scratch, task| {
                let (at, kv) = (order[task / self.kv_heads], task % self.kv_heads);
                let stripe = &stripes[at];
                let (key, keys) = (stripe.key(), stripe.keys.len());
                // SAFETY: every (stripe, kv head) owns these queries in its group's columns.
                let mut dq = |block: Block, head: usize| unsafe { dq_tiles.tile(block.row(), block.rows, head * d, d) };
                if owns_output(at) {
                    // SAFETY: one stripe per sequence owns its output, and every kv head its columns.
                    let (mut dk, mut dv) =
                        unsafe { (dk_tiles.tile(key, keys, kv * d, d), dv_tiles.tile(key, keys, kv * d, d)) };
                    self.backward_stripe(saved, stripe, kv, scratch, &mut dq, (&mut dk, &mut dv));
                } else {
                    let (mut dk, mut dv) = (vec![0.0; keys * d], vec![0.0; keys * d]);
                    let sums = (&mut MatMut::new(&mut dk, d), &mut MatMut::new(&mut dv, d));
                    self.backward_stripe(saved, stripe, kv, scratch, &mut dq, sums);
                    // A task runs once, so its cell is empty.
                    let _ = shares[at * self.kv_heads + kv].set((dk, dv));
                }
            },
        );
        // Add the shares in list order, one task per kv head.
        for_each_task(
            self.kv_heads,
            || (),
            |(), kv| {
                for (at, stripe) in stripes.iter().enumerate() {
                    let Some((dk_share, dv_share)) = shares[at * self.kv_heads + kv].get() else { continue };
                    let (key, keys) = (stripe.key(), stripe.keys.len());
                    // SAFETY: every kv head owns its columns, and the tasks above have ended.
                    let (mut dk, mut dv) =
                        unsafe { (dk_tiles.tile(key, keys, kv * d, d), dv_tiles.tile(key, keys, kv * d, d)) };
                    for (i, (k, v)) in dk_share.chunks_exact(d).zip(dv_share.chunks_exact(d)).enumerate() {
                        simd::add(dk.row(i), k);
                        simd::add(dv.row(i), v);
                    }
                }
            },
        );
        (dq, dk, dv)
    }

    /// One stripe of queries against one key/value head: writes its `dQ`, adds to `dk` and `dv`
    /// (`(keys, D)`, the keys that the stripe sees).
    fn backward_stripe<'a, 't>(
        &self,
        saved: &Saved<'a>,
        stripe: &Stripe,
        kv: usize,
        scratch: &mut Scratch,
        dq: &mut dyn FnMut(Block, usize) -> MatMut<'t>,
        (dk, dv): (&mut MatMut<'_>, &mut MatMut<'_>),
    ) {
        let (d, n, scale) = (self.head_dim, self.segments.tokens(), self.scale());
        let Scratch { scores, dp, packed } = scratch;
        let [for_s, for_dp, for_dq] = std::mem::take(packed);
        let of = |m: Mat<'a>| m.block(stripe.key(), stripe.keys.len(), kv * d, d);
        let k_t = Right::new(of(saved.k).t(), for_s);
        let v_t = Right::new(of(saved.v).t(), for_dp);
        let k = Right::new(of(saved.k), for_dq);
        for head in kv * self.group()..(kv + 1) * self.group() {
            for block in self.blocks(&stripe.sequence, stripe.queries.clone()) {
                let (at, keys) = (block.from - stripe.keys.start, block.keys);
                let seen = at..at + keys;
                let (scores, dp) = (&mut scores[..block.rows * keys], &mut dp[..block.rows * keys]);
                let qb = saved.q.block(block.row(), block.rows, head * d, d);
                let gb = saved.grad.block(block.row(), block.rows, head * d, d);
                let ob = saved.out.block(block.row(), block.rows, head * d, d);
                let (mut s_tile, mut dp_tile) = (MatMut::new(scores, keys), MatMut::new(dp, keys));
                k_t.multiply(&mut s_tile, Write::Replace, scale, qb, (0..d, seen.clone()));
                v_t.multiply(&mut dp_tile, Write::Replace, 1.0, gb, (0..d, seen.clone()));
                let rows = scores.chunks_exact_mut(keys).zip(dp.chunks_exact_mut(keys));
                for (i, (scores, dp)) in rows.enumerate() {
                    let live = self.live(block, i);
                    for dead in [0..live.start, live.end..keys] {
                        scores[dead.clone()].fill(0.0);
                        dp[dead].fill(0.0);
                    }
                    let (scores, dp) = (&mut scores[live.clone()], &mut dp[live]);
                    let lse = saved.lse[head * n + block.row() + i];
                    let delta = simd::dot(ob.row(i), gb.row(i));
                    match self.soft_cap {
                        None => simd::attention_backward(scores, dp, lse, delta),
                        Some(cap) => simd::capped_attention_backward(scores, dp, lse, delta, cap),
                    }
                }
                let (p, ds) = (Mat::new(scores, keys), Mat::new(dp, keys));
                gemm(&mut dv.rows(at, keys), Write::Add, 1.0, p.t(), gb, Threads::One);
                gemm(&mut dk.rows(at, keys), Write::Add, scale, ds.t(), qb, Threads::One);
                let ds = ds.block(0, block.rows, block.unseen, keys - block.unseen);
                k.multiply(&mut dq(block, head), Write::Replace, scale, ds, (at + block.unseen..at + keys, 0..d));
            }
        }
        *packed = [k_t, v_t, k].map(Right::into_lines);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let (q, k, v) = (input(name, q, ql)?, input(name, k, kl)?, input(name, v, vl)?);
        let mut out = vec![0.0; q.len()];
        let lse = self.shape.forward(q, k, v, &mut out);
        if self.lse.set(lse).is_err() {
            bail!("{name}: the same op ran forward twice");
        }
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let name = self.name();
        let Some(lse) = self.lse.get() else { bail!("{name}: backward ran before forward") };
        let shape = &self.shape;
        let (q_width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let (dq, dk, dv) = with_data(name, q, |q| {
            with_data(name, k, |k| {
                with_data(name, v, |v| {
                    with_data(name, out, |out| {
                        with_data(name, g, |g| {
                            shape.backward(&Saved {
                                q: Mat::new(q, q_width),
                                k: Mat::new(k, kv_width),
                                v: Mat::new(v, kv_width),
                                out: Mat::new(out, q_width),
                                grad: Mat::new(g, q_width),
                                lse,
                            })
                        })
                    })
                })
            })
        })?????;
        Ok((Some(tensor(dq, q.shape())?), Some(tensor(dk, k.shape())?), Some(tensor(dv, v.shape())?)))
    }
}
