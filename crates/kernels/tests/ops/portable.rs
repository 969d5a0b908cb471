//! What the harness does not see of the portable forms: edges, several chunks, and activations of 16 bits.

use crate::harness::{close, emulator, noise, values};
use candle_core::{DType, Device, Result, Tensor, Var};
use kernels::{
    AdamWRule, AttentionShape, IGNORE, RopeTable, Segments, adamw, add, add_bias, attention, dropout, geglu, gelu,
    layer_norm, linear, linear_cross_entropy, linear_cross_entropy_trainable, linear_log_probs, linear_trainable,
    lora_linear, merged_row_norms, record, rms_norm, rms_norm_trainable, rope, swiglu, token_losses, with_emulator,
    with_portable,
};

fn random(seed: u64, rows: usize, cols: usize) -> Tensor {
    Tensor::from_vec(noise(seed, rows * cols), (rows, cols), &Device::Cpu).unwrap()
}

fn wide(t: &Tensor) -> Vec<f64> {
    values(&t.to_dtype(DType::F32).unwrap()).iter().map(|x| f64::from(*x)).collect()
}

/// Value and gradients of the variables, by the tape.
fn run(vars: &[&Var], op: &dyn Fn() -> Result<Tensor>) -> Vec<Tensor> {
    let (y, tape) = record(|| op().unwrap());
    let probe = Tensor::from_vec(noise(99, y.elem_count()), y.shape(), &Device::Cpu).unwrap();
    let gradients = tape.backward(&y, probe.to_dtype(y.dtype()).unwrap()).unwrap();
    let of = |v: &&Var| gradients.get(v).unwrap().clone();
    std::iter::once(y).chain(vars.iter().map(of)).collect()
}

/// Results in 16 bits are those in 32 but for the rounding, and have the types of their variables.
#[test]
fn activations_of_sixteen_bits_give_nearly_the_same() {
    let (n, c) = (40, 32);
    let base = |seed| random(seed, n, c);
    let (x32, y32, z32) = (base(1), base(2), base(3));
    let (a, b) = (Var::from_tensor(&random(4, 4, c)).unwrap(), Var::from_tensor(&random(5, 24, 4)).unwrap());
    let (w32, square32, head32) = (random(6, 24, c), random(7, c, c), random(12, 50, c));
    let norm = Var::from_vec(noise(8, c), c, &Device::Cpu).unwrap();
    let bias = Var::from_vec(noise(9, c), c, &Device::Cpu).unwrap();
    let segments = Segments::from_lengths(&[7, 33]).unwrap();
    let shape = AttentionShape::causal(4, 2, 8, segments.clone());
    let table = RopeTable::new(10_000.0, 8, 64).unwrap();
    let targets: Vec<u32> = (0..40).map(|i| if i % 3 == 1 { IGNORE } else { i % 50 }).collect();
    let at = |dtype: DType| -> Vec<(&'static str, Vec<Tensor>)> {
        let var = |t: &Tensor| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap();
        let (x, y, z) = (var(&x32), var(&y32), var(&z32));
        let keys = |t: &Var| t.narrow(1, 0, 16).unwrap();
        let [w, square, head] = [&w32, &square32, &head32].map(|t| t.to_dtype(dtype).unwrap());
        let square = Var::from_tensor(&square).unwrap();
        vec![
            ("add", run(&[&x, &y], &|| add(&x, &y))),
            ("add_bias", run(&[&x, &bias], &|| add_bias(&x, &bias))),
            ("linear", run(&[&x], &|| linear(&x, &w))),
            ("linear_trainable", run(&[&x, &square], &|| linear_trainable(&x, &square))),
            ("lora_linear", run(&[&x, &a, &b], &|| lora_linear(&x, &w, &a, &b, 0.5))),
            ("rms_norm", run(&[&x], &|| rms_norm(&x, &norm, 1e-5))),
            ("rms_norm_trainable", run(&[&x, &norm], &|| rms_norm_trainable(&x, &norm, 1e-5))),
            ("layer_norm", run(&[&x, &norm, &bias], &|| layer_norm(&x, &norm, &bias, 1e-5))),
            ("swiglu", run(&[&x, &y], &|| swiglu(&x, &y))),
            ("geglu", run(&[&x, &y], &|| geglu(&x, &y))),
            ("gelu", run(&[&x], &|| gelu(&x))),
            ("rope", run(&[&x], &|| rope(&x, &table, &segments.positions(), 8))),
            ("attention", run(&[&x, &y, &z], &|| attention(&x, &keys(&y), &keys(&z), &shape))),
            ("loss", run(&[&x], &|| linear_cross_entropy(&x, &head, &targets, 27.0, None))),
            (
                "loss_trainable",
                run(&[&x, &square], &|| {
                    let targets: Vec<u32> = targets.iter().map(|t| if *t < 32 { *t } else { IGNORE }).collect();
                    linear_cross_entropy_trainable(&x, &square, &targets, 27.0, Some(4.0))
                }),
            ),
            ("log_probs", run(&[&x], &|| linear_log_probs(&x, &head, &targets, None))),
        ]
    };
    let exact = with_portable(|| at(DType::F32));
    let mut forms = vec![(DType::BF16, 0.03, with_portable(|| at(DType::BF16)))];
    forms.push((DType::F16, 0.004, with_portable(|| at(DType::F16))));
    forms.push((DType::BF16, 0.03, with_emulator(&emulator(), || at(DType::BF16))));
    for (dtype, tolerance, results) in forms {
        for ((op, want), (_, got)) in exact.iter().zip(results) {
            for (i, (want, got)) in want.iter().zip(&got).enumerate() {
                let got = values(&got.to_dtype(DType::F32).unwrap());
                close(&format!("{op} {i} in {dtype:?}"), &got, &wide(want), tolerance);
            }
        }
        let adapter = with_portable(|| {
            let x = Var::from_tensor(&x32.to_dtype(dtype).unwrap()).unwrap();
            run(&[&x, &a], &|| lora_linear(&x, &w32.to_dtype(dtype)?, &a, &b, 0.5))
        });
        let types: Vec<DType> = adapter.iter().map(Tensor::dtype).collect();
        assert_eq!(types, [dtype, dtype, DType::F32], "value, activation, adapter");
    }
}

/// Rows of the vocabulary's size in several chunks, each with and without targets.
#[test]
fn the_loss_comes_in_chunks() {
    let (n, c, v) = (60, 2, 300_000);
    let (x, w) = (Var::from_tensor(&random(1, n, c)).unwrap(), Var::from_tensor(&random(2, v, c)).unwrap());
    let targets: Vec<u32> = (0..60).map(|i| if i % 3 == 1 { IGNORE } else { i * 4999 }).collect();
    let of = || run(&[&x, &w], &|| linear_cross_entropy_trainable(&x, &w, &targets, 10.0, None));
    for form in [with_portable(of), with_emulator(&emulator(), of)] {
        for (got, want) in form.iter().zip(of()) {
            close("loss or gradient", &values(got), &wide(&want), 1e-5);
        }
    }
    let losses = || token_losses(&x, &w, &targets, None).unwrap();
    let want: Vec<f64> = losses().iter().map(|l| f64::from(*l)).collect();
    close("token losses", &with_portable(losses), &want, 1e-5);
}

#[test]
fn a_batch_without_targets_has_loss_zero_and_gradient_zero() {
    let (x, w) = (Var::from_tensor(&random(1, 4, 3)).unwrap(), Var::from_tensor(&random(2, 5, 3)).unwrap());
    with_portable(|| {
        let of = run(&[&x, &w], &|| linear_cross_entropy_trainable(&x, &w, &[IGNORE; 4], 1.0, None));
        assert_eq!((values(&of[0]), values(&of[1]), values(&of[2])), (vec![0.0], vec![0.0; 12], vec![0.0; 15]));
        let of = run(&[&x], &|| linear_log_probs(&x, &w, &[IGNORE; 4], None));
        assert_eq!((values(&of[0]), values(&of[1])), (vec![0.0; 4], vec![0.0; 12]));
        assert_eq!(token_losses(&x, &w, &[IGNORE; 4], None).unwrap(), [0.0; 4]);
    });
}

#[test]
fn a_broken_activation_makes_the_loss_nan() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = noise(1, 12);
        x[4] = bad;
        let x = Var::from_vec(x, (4, 3), &Device::Cpu).unwrap();
        let loss = || linear_cross_entropy(&x, &random(2, 20, 3), &[1, 2, 3, 4], 4.0, None).unwrap();
        for loss in [with_portable(loss), with_emulator(&emulator(), loss)] {
            assert!(loss.to_scalar::<f32>().unwrap().is_nan(), "{bad} was swallowed");
        }
    }
}

#[test]
fn row_norms_and_strided_inputs_are_those_of_the_cpu() {
    let (w, a, b) = (random(1, 1500, 8), random(2, 3, 8), random(3, 1500, 3));
    let norms = || values(&merged_row_norms(&w, &a, &b, 0.7).unwrap());
    let want: Vec<f64> = norms().iter().map(|x| f64::from(*x)).collect();
    close("norms", &with_portable(norms), &want, 1e-6);
    let strided = |t: &Tensor| t.t().unwrap().contiguous().unwrap().t().unwrap();
    let (x, w) = (random(4, 6, 4), random(5, 4, 4));
    let same =
        |of: &dyn Fn(&Tensor) -> Tensor| with_portable(|| assert_eq!(values(&of(&strided(&x))), values(&of(&x))));
    same(&|x| linear(x, &strided(&w)).unwrap());
    same(&|x| swiglu(x, x).unwrap());
    let shape = AttentionShape::causal(2, 2, 2, Segments::from_lengths(&[6]).unwrap());
    same(&|x| attention(x, x, x, &shape).unwrap());
}

/// The kernels of the optimizer and of dropout do what candle's operations do.
#[test]
fn the_kernels_outside_of_the_tape_do_the_same() {
    let emulator = emulator();
    let rule =
        AdamWRule { clip: 0.5, shrink: 0.999, beta1: 0.9, beta2: 0.98, epsilon: 1e-6, step_size: 0.02, root2: 0.3 };
    let update = || {
        let [p, g, m] = [1, 2, 3].map(|seed| random(seed, 30, 20));
        let v = random(4, 30, 20).sqr().unwrap();
        adamw(&p, &g, &m, &v, rule).unwrap();
        [p, m, v].map(|t| values(&t))
    };
    let of = |all: [Vec<f32>; 3]| all.concat();
    let want: Vec<f64> = of(with_portable(update)).iter().map(|x| f64::from(*x)).collect();
    close("parameters and moments", &of(with_emulator(&emulator, update)), &want, 1e-6);
    for dtype in [DType::F32, DType::BF16] {
        let x = random(5, 60, 50).to_dtype(dtype).unwrap();
        let dropped = || wide(&dropout(&x, 0.3, 0x1234_5678_9abc_def0).unwrap());
        let (ours, theirs) = (with_emulator(&emulator, dropped), with_portable(dropped));
        let zeros = ours.iter().filter(|x| **x == 0.0).count();
        assert!((800..1000).contains(&zeros), "{zeros} of 3000 dropped");
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / (b.abs() + 1e-6)).fold(0.0, f64::max);
        assert!(worst < if dtype == DType::F32 { 1e-6 } else { 1e-2 }, "{dtype:?}: {worst:.2e}");
    }
}
