use crate::harness::{check, trained};
use kernels::{AttentionShape, Segments, attention};

const TOLERANCE: f64 = 1e-5;

fn naive(shape: &AttentionShape, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_dim: d, ref segments } = *shape;
    let mut out = vec![0.0; q.len()];
    for range in segments.ranges() {
        for row in range.clone() {
            for head in 0..heads {
                let kv = head / (heads / kv_heads);
                let query = &q[(row * heads + head) * d..][..d];
                let weights: Vec<f64> = (range.start..=row)
                    .map(|at| {
                        let key = &k[(at * kv_heads + kv) * d..][..d];
                        (query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for (at, weight) in (range.start..=row).zip(weights) {
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

fn check_shape(heads: usize, kv_heads: usize, d: usize, lengths: &[usize]) {
    let segments = Segments::from_lengths(lengths).unwrap();
    let n = segments.tokens();
    let shape = AttentionShape { heads, kv_heads, head_dim: d, segments };
    let inputs = [
        trained("q", &[n, heads * d]).around(0.0, 2.0),
        trained("k", &[n, kv_heads * d]).around(0.0, 2.0),
        trained("v", &[n, kv_heads * d]),
    ];
    check(&inputs, TOLERANCE, &|t| attention(&t[0], &t[1], &t[2], &shape), &|v| naive(&shape, &v[0], &v[1], &v[2]));
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

/// A token must not see past its sequence, nor the future.
#[test]
fn a_sequence_gives_the_same_bits_alone_and_in_company() {
    use candle_core::{Device, Tensor};
    let data = |seed| Tensor::from_vec(crate::harness::noise(seed, 90 * 8), (90, 8), &Device::Cpu).unwrap();
    let (q, k, v) = (data(1), data(2), data(3));
    let run = |start: usize, rows: usize, lengths: &[usize]| {
        let cut = |t: &Tensor| t.narrow(0, start, rows).unwrap();
        let segments = Segments::from_lengths(lengths).unwrap();
        let shape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 4, segments };
        crate::harness::values(&attention(&cut(&q), &cut(&k), &cut(&v), &shape).unwrap())
    };
    let together = run(0, 90, &[10, 70, 10]);
    assert_eq!(together[10 * 8..80 * 8], run(10, 70, &[70])[..]);
    assert_eq!(together[80 * 8..], run(80, 10, &[10])[..]);
}
