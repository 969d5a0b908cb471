use crate::harness::{check, trained};
use kernels::{AttentionShape, Segments, attention};

const TOLERANCE: f64 = 1e-5;

fn naive(shape: &AttentionShape, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_dim: d, ref segments, causal, window, soft_cap, scale } = *shape;
    let scale = scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
    let mut out = vec![0.0; q.len()];
    for range in segments.ranges() {
        for row in range.clone() {
            let first = window.map_or(range.start, |w| range.start.max((row + 1).saturating_sub(w)));
            let keys = if causal { first..row + 1 } else { range.clone() };
            for head in 0..heads {
                let kv = head / (heads / kv_heads);
                let query = &q[(row * heads + head) * d..][..d];
                let weights: Vec<f64> = keys
                    .clone()
                    .map(|at| {
                        let key = &k[(at * kv_heads + kv) * d..][..d];
                        let score = query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() * scale;
                        soft_cap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh()).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for (at, weight) in keys.clone().zip(weights) {
                    let value = &v[(at * kv_heads + kv) * d..][..d];
                    for (o, v) in out[(row * heads + head) * d..][..d].iter_mut().zip(value) {
                        *o += weight / total * v;
                    }
                }
            }
        }
    }
    out
}

fn shape(heads: usize, kv_heads: usize, d: usize, lengths: &[usize]) -> AttentionShape {
    AttentionShape::causal(heads, kv_heads, d, Segments::from_lengths(lengths).unwrap())
}

fn check_attention(shape: &AttentionShape) {
    let (n, d) = (shape.segments.tokens(), shape.head_dim);
    let inputs = [
        trained("q", &[n, shape.heads * d]).around(0.0, 2.0),
        trained("k", &[n, shape.kv_heads * d]).around(0.0, 2.0),
        trained("v", &[n, shape.kv_heads * d]),
    ];
    check(&inputs, TOLERANCE, &|t| attention(&t[0], &t[1], &t[2], shape), &|v| naive(shape, &v[0], &v[1], &v[2]));
}

fn check_shape(heads: usize, kv_heads: usize, d: usize, lengths: &[usize]) {
    check_attention(&shape(heads, kv_heads, d, lengths));
}

#[test]
fn attention_matches_for_every_group_size() {
    check_shape(1, 1, 1, &[1]);
    check_shape(2, 2, 4, &[3, 1, 7]);
    check_shape(4, 2, 8, &[1, 12, 1, 5]);
    check_shape(4, 1, 6, &[9, 20]);
}

#[test]
fn attention_matches_over_several_tiles() {
    check_shape(2, 1, 4, &[96, 97, 1, 200]);
}

/// Long enough that the backward pass adds up stripes.
#[test]
fn attention_matches_over_several_stripes() {
    check_shape(1, 1, 2, &[2100, 3]);
}

#[test]
fn every_query_sees_the_whole_sequence_without_causality() {
    for lengths in [vec![1], vec![3, 1, 7], vec![130, 2]] {
        check_attention(&AttentionShape { causal: false, ..shape(4, 2, 4, &lengths) });
    }
    check_attention(&AttentionShape { causal: false, ..shape(1, 1, 2, &[2100]) });
}

/// Windows of two keys, within a tile, over several tiles, and longer than the sequences.
#[test]
fn a_window_hides_what_lies_behind_it() {
    for window in [2, 3, 40, 100, 1000] {
        check_attention(&AttentionShape { window: Some(window), ..shape(2, 1, 4, &[5, 230, 1]) });
    }
    check_attention(&AttentionShape { window: Some(150), ..shape(1, 1, 2, &[2100, 3]) });
}

#[test]
fn scores_are_scaled_and_capped() {
    for (scale, soft_cap) in [(Some(0.3), None), (None, Some(1.5)), (Some(2.0), Some(5.0))] {
        check_attention(&AttentionShape { scale, soft_cap, ..shape(4, 2, 4, &[3, 110]) });
        check_attention(&AttentionShape { scale, soft_cap, window: Some(20), ..shape(4, 2, 4, &[3, 110]) });
    }
}

/// The keys that no query of a tile sees are not even read.
#[test]
fn keys_behind_the_window_are_skipped() {
    use candle_core::{Device, Tensor, Var};
    let shape = AttentionShape { window: Some(4), ..shape(1, 1, 2, &[300]) };
    let poisoned: Vec<f32> = (0..600).map(|i| if i < 2 * 180 { f32::NAN } else { (i % 7) as f32 }).collect();
    let k = Var::from_vec(poisoned, (300, 2), &Device::Cpu).unwrap();
    let q = Tensor::ones((300, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let y = attention(&q, &k, &k, &shape).unwrap().narrow(0, 192, 108).unwrap(); // the last two tiles
    assert!(crate::harness::values(&y).iter().all(|x| x.is_finite()));
}

/// A token must not see past its sequence, nor the future.
#[test]
fn a_sequence_gives_the_same_bits_alone_and_in_company() {
    use candle_core::{Device, Tensor};
    let data = |seed| Tensor::from_vec(crate::harness::noise(seed, 90 * 8), (90, 8), &Device::Cpu).unwrap();
    let (q, k, v) = (data(1), data(2), data(3));
    let run = |start: usize, rows: usize, lengths: &[usize]| {
        let cut = |t: &Tensor| t.narrow(0, start, rows).unwrap();
        crate::harness::values(&attention(&cut(&q), &cut(&k), &cut(&v), &shape(2, 2, 4, lengths)).unwrap())
    };
    let together = run(0, 90, &[10, 70, 10]);
    assert_eq!(together[10 * 8..80 * 8], run(10, 70, &[70])[..]);
    assert_eq!(together[80 * 8..], run(80, 10, &[10])[..]);
}
