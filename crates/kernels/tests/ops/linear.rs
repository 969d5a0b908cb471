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

/// Frozen weights in 16 bits are widened exactly, so values and gradients are those of the widened weight to the bit.
#[test]
fn sixteen_bit_weights_equal_widened_ones() {
    use candle_core::{DType, Device, Tensor, Var};
    let random = |rows: usize, cols: usize| Tensor::randn(0.0_f32, 1.0, (rows, cols), &Device::Cpu).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let x = Var::from_tensor(&random(70, 20)).unwrap();
    let (a, b) = (Var::from_tensor(&random(4, 20)).unwrap(), Var::from_tensor(&random(12, 4)).unwrap());
    let targets: Vec<u32> = (0..70).map(|i| i % 12).collect();
    for dtype in [DType::BF16, DType::F16] {
        let half = random(12, 20).to_dtype(dtype).unwrap();
        let wide = half.to_dtype(DType::F32).unwrap();
        let ops: [&dyn Fn(&Tensor) -> Tensor; 3] = [
            &|w| linear(&x, w).unwrap().sqr().unwrap().sum_all().unwrap(),
            &|w| lora_linear(&x, w, &a, &b, 0.5).unwrap().sqr().unwrap().sum_all().unwrap(),
            &|w| kernels::linear_cross_entropy(&x, w, &targets, 70.0, None).unwrap(),
        ];
        for op in ops {
            let [narrow, whole] = [&half, &wide].map(|w| {
                let y = op(w);
                let gradients = y.backward().unwrap();
                (flat(&y), flat(gradients.get(&x).unwrap()))
            });
            assert_eq!(narrow, whole, "{dtype:?}");
        }
        let losses = [&half, &wide].map(|w| kernels::token_losses(&x, w, &targets, None).unwrap());
        assert_eq!(losses[0], losses[1]);
        let norms = [&half, &wide].map(|w| flat(&kernels::merged_row_norms(w, &a, &b, 0.5).unwrap()));
        assert_eq!(norms[0], norms[1]);
    }
}
