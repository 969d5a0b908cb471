use crate::harness::{check, frozen, trained};
use kernels::{RopeTable, Segments, add_bias, geglu, gelu, layer_norm, rms_norm, rms_norm_trainable, rope, swiglu};

const TOLERANCE: f64 = 3e-6;

fn naive_rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| {
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt();
        x.iter().zip(w).map(|(x, w)| x * r * w).collect::<Vec<_>>()
    };
    x.chunks(w.len()).flat_map(row).collect()
}

#[test]
fn rms_norm_matches_and_never_trains_its_weight() {
    for (n, c) in [(1, 2), (3, 5), (7, 64), (150, 17)] {
        let inputs = [trained("x", &[n, c]), frozen("w", &[c]).around(1.0, 0.5)];
        check(&inputs, TOLERANCE, &|t| rms_norm(&t[0], &t[1], 1e-5), &|v| naive_rms_norm(&v[0], &v[1], 1e-5));
    }
}

#[test]
fn rms_norm_trainable_matches_and_trains_both() {
    for (n, c) in [(1, 2), (3, 5), (7, 64), (150, 17)] {
        let inputs = [trained("x", &[n, c]), trained("w", &[c]).around(1.0, 0.5)];
        check(&inputs, TOLERANCE, &|t| rms_norm_trainable(&t[0], &t[1], 1e-5), &|v| naive_rms_norm(&v[0], &v[1], 1e-5));
    }
}

/// Includes gates far outside the range where eˣ fits into f32.
#[test]
fn swiglu_matches() {
    for (n, f, spread) in [(1, 1, 1.0), (3, 5, 3.0), (9, 70, 8.0), (4, 32, 150.0)] {
        let inputs = [trained("gate", &[n, f]).around(0.0, spread), trained("up", &[n, f])];
        check(&inputs, TOLERANCE, &|t| swiglu(&t[0], &t[1]), &|v| {
            v[0].iter().zip(&v[1]).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
        });
    }
}

#[test]
fn geglu_matches() {
    for (n, f, spread) in [(1, 1, 1.0), (3, 5, 3.0), (9, 70, 8.0), (4, 32, 150.0)] {
        let inputs = [trained("gate", &[n, f]).around(0.0, spread), trained("up", &[n, f])];
        check(&inputs, TOLERANCE, &|t| geglu(&t[0], &t[1]), &|v| {
            let inner = |z: f64| (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
            v[0].iter().zip(&v[1]).map(|(z, u)| 0.5 * z * (1.0 + inner(*z).tanh()) * u).collect()
        });
    }
}

#[test]
fn a_bias_is_added_to_every_row_and_trained_only_when_tracked() {
    let naive = |v: &[Vec<f64>]| v[0].iter().zip(v[1].iter().cycle()).map(|(x, b)| x + b).collect();
    for (n, c) in [(1, 1), (3, 5), (7, 64), (600, 3)] {
        let inputs = [trained("x", &[n, c]), trained("b", &[c])];
        check(&inputs, TOLERANCE, &|t| add_bias(&t[0], &t[1]), &naive);
        let inputs = [trained("x", &[n, c]), frozen("b", &[c])];
        check(&inputs, TOLERANCE, &|t| add_bias(&t[0], &t[1].detach()), &naive);
    }
}

/// Of heads of 12 channels the first 8 turn, and are scaled.
#[test]
fn rope_leaves_the_channels_past_its_table_alone() {
    let (d, half, factor) = (12, 4, 1.25);
    let segments = Segments::from_lengths(&[5, 9]).unwrap();
    let positions = segments.positions();
    let table = RopeTable::new(100.0, 2 * half, 64).unwrap().scaled(factor);
    check(&[trained("x", &[14, 2 * d])], TOLERANCE, &|t| rope(&t[0], &table, &positions, d), &|v| {
        let mut y = v[0].clone();
        for (at, head) in y.chunks_mut(d).enumerate() {
            for i in 0..half {
                let angle = f64::from(positions[at / 2]) / 100f64.powf(i as f64 / half as f64);
                let (a, b) = (head[i] * f64::from(factor), head[i + half] * f64::from(factor));
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = b * angle.cos() + a * angle.sin();
            }
        }
        y
    });
}

#[test]
fn rope_turns_each_head_by_its_own_position() {
    for (heads, d, lengths) in [(1, 2, vec![1]), (3, 8, vec![5, 1, 9]), (2, 48, vec![3, 30]), (1, 128, vec![40])] {
        let segments = Segments::from_lengths(&lengths).unwrap();
        let positions = segments.positions();
        let table = RopeTable::new(10_000.0, d, 64).unwrap();
        let inputs = [trained("x", &[segments.tokens(), heads * d])];
        check(&inputs, TOLERANCE, &|t| rope(&t[0], &table, &positions, d), &|v| {
            let mut y = v[0].clone();
            for (row, y) in y.chunks_mut(heads * d).enumerate() {
                for head in y.chunks_mut(d) {
                    for i in 0..d / 2 {
                        let angle = f64::from(positions[row]) / 10_000f64.powf(2.0 * i as f64 / d as f64);
                        let (a, b) = (head[i], head[i + d / 2]);
                        head[i] = a * angle.cos() - b * angle.sin();
                        head[i + d / 2] = b * angle.cos() + a * angle.sin();
                    }
                }
            }
            y
        });
    }
}

#[test]
fn positions_restart_at_every_sequence() {
    let segments = Segments::from_lengths(&[3, 1, 2]).unwrap();
    assert_eq!(segments.positions(), [0, 1, 2, 0, 0, 1]);
    assert_eq!((segments.tokens(), segments.count()), (6, 3));
    assert_eq!(segments.ranges().collect::<Vec<_>>(), [0..3, 3..4, 4..6]);
}

fn naive_layer_norm(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let r = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + eps).sqrt();
        x.iter().zip(w).zip(b).map(|((x, w), b)| (x - mean) * r * w + b).collect::<Vec<_>>()
    };
    x.chunks(w.len()).flat_map(row).collect()
}

#[test]
fn layer_norm_matches_and_trains_what_is_tracked() {
    // Two channels would be ±1 whatever they are: a gradient of zero.
    for (n, c) in [(1, 3), (3, 5), (7, 64), (150, 17)] {
        let naive = |v: &[Vec<f64>]| naive_layer_norm(&v[0], &v[1], &v[2], 1e-5);
        let inputs = [trained("x", &[n, c]).around(0.3, 1.0), trained("w", &[c]).around(1.0, 0.5), trained("b", &[c])];
        check(&inputs, TOLERANCE, &|t| layer_norm(&t[0], &t[1], &t[2], 1e-5), &naive);
        let inputs = [trained("x", &[n, c]), frozen("w", &[c]).around(1.0, 0.5), frozen("b", &[c])];
        check(&inputs, TOLERANCE, &|t| layer_norm(&t[0], &t[1].detach(), &t[2].detach(), 1e-5), &naive);
        let inputs = [trained("x", &[n, c]), frozen("w", &[c]).around(1.0, 0.5), trained("b", &[c])];
        check(&inputs, TOLERANCE, &|t| layer_norm(&t[0], &t[1].detach(), &t[2], 1e-5), &naive);
    }
}

/// Includes values whose tail of the normal distribution is far below what f32 holds.
#[test]
fn gelu_matches() {
    // Φ by Simpson's rule over the density, from 0.
    let phi = |x: f64| {
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let (n, x) = (2000, x.clamp(-9.0, 9.0));
        let h = x / f64::from(n);
        let weight = |i: i32| if i % 2 == 1 { 4.0 } else { 2.0 };
        let inner: f64 = (1..n).map(|i| weight(i) * density(f64::from(i) * h)).sum();
        0.5 + h / 3.0 * (density(0.0) + inner + density(x))
    };
    for (n, f, spread) in [(1, 1, 1.0), (3, 5, 3.0), (9, 7, 8.0), (4, 3, 150.0)] {
        let inputs = [trained("x", &[n, f]).around(0.0, spread)];
        check(&inputs, TOLERANCE, &|t| gelu(&t[0]), &|v| v[0].iter().map(|x| x * phi(*x)).collect());
    }
}
