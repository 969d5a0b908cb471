use crate::harness::{check, frozen, trained};
use kernels::{linear, linear_trainable, lora_linear};

const TOLERANCE: f64 = 3e-6;

/// `x (n, k)` times `w (out, k)` transposed.
pub fn times(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let row = |x: &[f64]| w.chunks(k).map(|w| x.iter().zip(w).map(|(a, b)| a * b).sum::<f64>()).collect::<Vec<_>>();
    x.chunks(k).flat_map(row).collect()
}

#[test]
fn linear_matches_and_never_trains_its_weight() {
    for (n, k, out) in [(1, 1, 1), (3, 5, 2), (17, 33, 9), (64, 48, 80)] {
        let inputs = [trained("x", &[n, k]), frozen("w", &[out, k])];
        check(&inputs, TOLERANCE, &|t| linear(&t[0], &t[1]), &|v| times(&v[0], &v[1], k));
    }
}

#[test]
fn linear_trainable_matches_and_trains_both() {
    for (n, k, out) in [(1, 1, 1), (3, 5, 2), (17, 33, 9), (64, 48, 80)] {
        let inputs = [trained("x", &[n, k]), trained("w", &[out, k])];
        check(&inputs, TOLERANCE, &|t| linear_trainable(&t[0], &t[1]), &|v| times(&v[0], &v[1], k));
    }
}

/// Few tokens take the low-rank path, many fold the adapter into the weight.
#[test]
fn lora_linear_matches_on_both_paths() {
    for (n, k, out, r) in
        [(1, 1, 1, 1), (2, 24, 40, 3), (5, 7, 11, 2), (70, 20, 12, 8), (130, 24, 40, 16), (9, 8, 8, 32)]
    {
        let inputs = [trained("x", &[n, k]), frozen("w", &[out, k]), trained("a", &[r, k]), trained("b", &[out, r])];
        check(&inputs, TOLERANCE, &|t| lora_linear(&t[0], &t[1], &t[2], &t[3], 0.75), &|v| {
            let low = times(&times(&v[0], &v[2], k), &v[3], r);
            times(&v[0], &v[1], k).iter().zip(low).map(|(y, l)| y + 0.75 * l).collect()
        });
    }
}

#[test]
fn an_untracked_input_gets_no_gradient() {
    use candle_core::{Device, Tensor, Var};
    let x = Tensor::ones((4, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let w = Tensor::ones((5, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let a = Var::ones((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let b = Var::ones((5, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let gradients = lora_linear(&x, &w, &a, &b, 1.0).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&a).is_some() && gradients.get(&b).is_some());
    assert!(gradients.get(&x).is_none() && gradients.get(&w).is_none());
}
