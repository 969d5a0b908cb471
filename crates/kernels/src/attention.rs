//! Causal self-attention with grouped key/value heads, over sequences laid end to end.
//!
//! For each sequence and head: `S = Q Kᵀ / √D`, `P = softmax(S)` over positions up to the query's own,
//! `O = P V`. Query head `h` uses key/value head `h / (H / KV)`.
//!
//! The scores exist only for one tile of [`BLOCK`] queries at a time. The forward pass saves the
//! log-sum-exp of each row; the backward pass makes the tile again from it (Dao, arXiv 2307.08691):
//! `δ = Σ g ⊙ O` per row, `dV = Pᵀ g`, `dP = g Vᵀ`, `dS = P ⊙ (dP − δ)`, `dQ = dS K / √D`, `dK = dSᵀ Q / √D`.
//!
//! Work is cut by shape alone, and the sums over queries that make `dK` and `dV` run in a fixed order, so
//! results do not depend on timing.

#![expect(clippy::indexing_slicing, clippy::as_conversions, reason = "offsets of checked shapes")]

use crate::buffer::{for_each_task, input, prepare, tensor, with_data};
use crate::matmul::{Mat, MatMut, Threads, Tiles, Write, gemm};
use crate::segments::Segments;
use crate::simd;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::ops::Range;
use std::sync::OnceLock;

/// Queries per tile. A multiple of the widths that `gemm`'s inner kernels work on (6, 16).
const BLOCK: usize = 96;

/// A long sequence's backward pass is cut into at most this many stripes of queries, each at least
/// [`STRIPE`] long, that add up their own share of `dK` and `dV`: else one long sequence with few
/// key/value heads would keep few threads busy.
const MAX_STRIPES: usize = 8;
const STRIPE: usize = 1024;

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
}

/// `q (N, H·D)`, `k (N, KV·D)`, `v (N, KV·D)` → `(N, H·D)`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    const OP: &str = "attention";
    let AttentionShape { heads, kv_heads, head_dim, ref segments } = *shape;
    let n = segments.tokens();
    if n * heads * kv_heads * head_dim == 0 || !heads.is_multiple_of(kv_heads) {
        bail!("{OP}: {n} tokens, {heads} heads, {kv_heads} key/value heads of size {head_dim} do not fit together");
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
    let op = Attention { shape: shape.clone(), lse: OnceLock::new() };
    prepare(OP, "q", q)?.apply_op3(&prepare(OP, "k", k)?, &prepare(OP, "v", v)?, op)
}

struct Attention {
    shape: AttentionShape,
    /// Log-sum-exp of each row of scores, `(H, N)`.
    lse: OnceLock<Vec<f32>>,
}

/// A tile of queries of one sequence: `rows` from `start + first` on, looking at keys from `start` on.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    first: usize,
    rows: usize,
}

impl Block {
    /// Keys the last query sees.
    fn keys(self) -> usize {
        self.first + self.rows
    }

    fn row(self) -> usize {
        self.start + self.first
    }
}

/// The tiles of the queries `first..end` of a sequence that begins at `start`.
fn blocks(start: usize, queries: Range<usize>) -> impl DoubleEndedIterator<Item = Block> {
    let end = queries.end;
    queries.step_by(BLOCK).map(move |first| Block { start, first, rows: BLOCK.min(end - first) })
}

impl AttentionShape {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Query heads per key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn longest(&self) -> usize {
        self.segments.ranges().map(|r| r.len()).max().unwrap_or(0)
    }

    /// Writes `O (N, H·D)`; returns the log-sum-exp `(H, N)`.
    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) -> Vec<f32> {
        let (d, n) = (self.head_dim, self.segments.tokens());
        let (q, k, v) = (Mat::new(q, self.heads * d), Mat::new(k, self.kv_heads * d), Mat::new(v, self.kv_heads * d));
        let mut lse = vec![0.0; self.heads * n];
        let (out, lse_tiles) = (Tiles::new(out, self.heads * d), Tiles::new(&mut lse, n));
        let mut tasks: Vec<Block> = self.segments.ranges().flat_map(|r| blocks(r.start, 0..r.len())).collect();
        tasks.sort_by_key(|b| std::cmp::Reverse(b.keys()));
        let longest = self.longest();
        for_each_task(
            tasks.len() * self.heads,
            || vec![0.0; BLOCK * longest],
            |scores, task| {
                let (block, head) = (tasks[task / self.heads], task % self.heads);
                let (keys, kv) = (block.keys(), head / self.group());
                let scores = &mut scores[..block.rows * keys];
                let qb = q.block(block.row(), block.rows, head * d, d);
                let kb = k.block(block.start, keys, kv * d, d);
                gemm(&mut MatMut::new(scores, keys), Write::Replace, self.scale(), qb, kb.t(), Threads::One);
                // SAFETY: every (block, head) owns its rectangle of both outputs.
                let (mut o, mut lse) = unsafe {
                    (out.tile(block.row(), block.rows, head * d, d), lse_tiles.tile(head, 1, block.row(), block.rows))
                };
                for ((i, row), lse) in scores.chunks_exact_mut(keys).enumerate().zip(lse.row(0)) {
                    let (live, dead) = row.split_at_mut(block.first + i + 1);
                    dead.fill(0.0);
                    let max = simd::max(live);
                    let sum = simd::exp_sum(live, max);
                    simd::scale(live, 1.0 / sum);
                    *lse = max + sum.ln();
                }
                let vb = v.block(block.start, keys, kv * d, d);
                gemm(&mut o, Write::Replace, 1.0, Mat::new(scores, keys), vb, Threads::One);
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

/// One stripe of queries of one sequence.
struct Stripe {
    sequence: usize,
    start: usize,
    queries: Range<usize>,
}

impl AttentionShape {
    /// Cuts the sequences into stripes of about equal work, longest keys first within a sequence.
    fn stripes(&self) -> Vec<Stripe> {
        let mut stripes = Vec::new();
        for (sequence, range) in self.segments.ranges().enumerate() {
            let (start, len) = (range.start, range.len());
            let count = (len / STRIPE).clamp(1, MAX_STRIPES);
            // Work grows with the square of the position; boundaries fall between tiles.
            let boundary = |i: usize| match i {
                i if i == count => len,
                i => ((len as f64 * (i as f64 / count as f64).sqrt()) as usize / BLOCK * BLOCK).min(len),
            };
            let cut = (0..count).rev().map(|i| boundary(i)..boundary(i + 1)).filter(|queries| !queries.is_empty());
            stripes.extend(cut.map(|queries| Stripe { sequence, start, queries }));
        }
        stripes
    }

    /// Gradients of `q`, `k`, `v` given the saved tensors.
    fn backward(&self, saved: &Saved<'_>) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (d, n) = (self.head_dim, self.segments.tokens());
        let (q_width, kv_width) = (self.heads * d, self.kv_heads * d);
        let (mut dq, mut dk, mut dv) = (vec![0.0; n * q_width], vec![0.0; n * kv_width], vec![0.0; n * kv_width]);
        let stripes = self.stripes();
        let longest = self.longest();
        // Every stripe but a sequence's first in the list (which sees all its keys) has its own dK and dV.
        let shares: Vec<OnceLock<(Vec<f32>, Vec<f32>)>> =
            (0..stripes.len() * self.kv_heads).map(|_| OnceLock::new()).collect();
        let (dq_tiles, dk_tiles, dv_tiles) =
            (Tiles::new(&mut dq, q_width), Tiles::new(&mut dk, kv_width), Tiles::new(&mut dv, kv_width));
        let owns_output = |i: usize| i == 0 || stripes[i - 1].sequence != stripes[i].sequence;
        let mut order: Vec<usize> = (0..stripes.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(stripes[i].queries.end.pow(2) - stripes[i].queries.start.pow(2)));
        for_each_task(
            order.len() * self.kv_heads,
            || (vec![0.0; BLOCK * longest], vec![0.0; BLOCK * longest]),
            |(scores, dp), task| {
                let (at, kv) = (order[task / self.kv_heads], task % self.kv_heads);
                let stripe = &stripes[at];
                let keys = stripe.queries.end;
                // SAFETY: every (stripe, kv head) owns these queries in its group's columns.
                let mut dq = |block: Block, head: usize| unsafe { dq_tiles.tile(block.row(), block.rows, head * d, d) };
                if owns_output(at) {
                    // SAFETY: one stripe per sequence owns its output, and every kv head its columns.
                    let (mut dk, mut dv) = unsafe {
                        (dk_tiles.tile(stripe.start, keys, kv * d, d), dv_tiles.tile(stripe.start, keys, kv * d, d))
                    };
                    self.backward_stripe(saved, stripe, kv, (scores, dp), &mut dq, (&mut dk, &mut dv));
                } else {
                    let (mut dk, mut dv) = (vec![0.0; keys * d], vec![0.0; keys * d]);
                    let sums = (&mut MatMut::new(&mut dk, d), &mut MatMut::new(&mut dv, d));
                    self.backward_stripe(saved, stripe, kv, (scores, dp), &mut dq, sums);
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
                    let keys = stripe.queries.end;
                    // SAFETY: every kv head owns its columns, and the tasks above have ended.
                    let (mut dk, mut dv) = unsafe {
                        (dk_tiles.tile(stripe.start, keys, kv * d, d), dv_tiles.tile(stripe.start, keys, kv * d, d))
                    };
                    for (i, (k, v)) in dk_share.chunks_exact(d).zip(dv_share.chunks_exact(d)).enumerate() {
                        simd::add(dk.row(i), k);
                        simd::add(dv.row(i), v);
                    }
                }
            },
        );
        (dq, dk, dv)
    }

    /// One stripe of queries against one key/value head: writes its `dQ`, overwrites `dk` and `dv`
    /// (`(keys, D)`, keys counted from the sequence's first).
    fn backward_stripe<'t>(
        &self,
        saved: &Saved<'_>,
        stripe: &Stripe,
        kv: usize,
        (scores, dp): (&mut [f32], &mut [f32]),
        dq: &mut dyn FnMut(Block, usize) -> MatMut<'t>,
        (dk, dv): (&mut MatMut<'_>, &mut MatMut<'_>),
    ) {
        let (d, n, scale) = (self.head_dim, self.segments.tokens(), self.scale());
        let mut write = Write::Replace;
        for head in kv * self.group()..(kv + 1) * self.group() {
            // Last tile first: it sees all keys, so it initialises every row of dK and dV.
            for block in blocks(stripe.start, stripe.queries.clone()).rev() {
                let keys = block.keys();
                let (scores, dp) = (&mut scores[..block.rows * keys], &mut dp[..block.rows * keys]);
                let qb = saved.q.block(block.row(), block.rows, head * d, d);
                let gb = saved.grad.block(block.row(), block.rows, head * d, d);
                let ob = saved.out.block(block.row(), block.rows, head * d, d);
                let kb = saved.k.block(block.start, keys, kv * d, d);
                let vb = saved.v.block(block.start, keys, kv * d, d);
                gemm(&mut MatMut::new(scores, keys), Write::Replace, scale, qb, kb.t(), Threads::One);
                gemm(&mut MatMut::new(dp, keys), Write::Replace, 1.0, gb, vb.t(), Threads::One);
                let rows = scores.chunks_exact_mut(keys).zip(dp.chunks_exact_mut(keys));
                for (i, (scores, dp)) in rows.enumerate() {
                    let live = block.first + i + 1;
                    let lse = saved.lse[head * n + block.row() + i];
                    let delta = simd::dot(ob.row(i), gb.row(i));
                    simd::attention_backward(&mut scores[..live], &mut dp[..live], lse, delta);
                    scores[live..].fill(0.0);
                    dp[live..].fill(0.0);
                }
                let (p, ds) = (Mat::new(scores, keys), Mat::new(dp, keys));
                gemm(&mut dv.top(keys), write, 1.0, p.t(), gb, Threads::One);
                gemm(&mut dk.top(keys), write, scale, ds.t(), qb, Threads::One);
                gemm(&mut dq(block, head), Write::Replace, scale, ds, kb, Threads::One);
                write = Write::Add;
            }
        }
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
