//! Shapes that do not fit are errors that say so, and strided inputs are as good as contiguous ones.

use crate::harness::{noise, values};
use candle_core::{DType, Device, Result, Tensor};
use kernels::{
    AttentionShape, IGNORE, RopeTable, Segments, add_bias, attention, geglu, gelu, layer_norm, linear,
    linear_cross_entropy, linear_log_probs, linear_trainable, lora_linear, rms_norm, rms_norm_trainable, rope, swiglu,
    token_losses,
};

fn t(rows: usize, cols: usize) -> Tensor {
    Tensor::from_vec(noise((rows * 31 + cols) as u64, rows * cols), (rows, cols), &Device::Cpu).unwrap()
}

fn v(len: usize) -> Tensor {
    Tensor::from_vec(noise(len as u64, len), len, &Device::Cpu).unwrap()
}

/// Asserts that the call failed with a message containing all `parts`.
fn fails<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let message = result.unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} does not mention {part:?}");
    }
}

#[test]
fn shape_errors_name_the_op_and_the_shapes() {
    fails(linear(&t(2, 3), &t(4, 5)), &["linear", "[2, 3]", "[4, 5]"]);
    fails(linear_trainable(&v(3), &t(4, 3)), &["linear_trainable", "[3]"]);
    fails(lora_linear(&t(2, 3), &t(4, 3), &t(2, 3), &t(4, 1), 1.0), &["lora_linear", "[2, 3]", "[4, 1]"]);
    fails(lora_linear(&t(2, 3), &t(4, 3), &t(2, 4), &t(4, 2), 1.0), &["lora_linear", "[2, 4]", "(r, 3)"]);
    fails(rms_norm(&t(2, 3), &v(4), 1e-5), &["rms_norm", "[2, 3]", "[4]"]);
    fails(rms_norm_trainable(&t(2, 3), &v(4), 1e-5), &["rms_norm_trainable", "[2, 3]", "[4]"]);
    fails(layer_norm(&t(2, 3), &v(3), &v(4), 1e-5), &["layer_norm", "[2, 3]", "[4]"]);
    fails(gelu(&v(3)), &["gelu", "[3]"]);
    fails(linear_log_probs(&t(2, 3), &t(5, 3), &[0], None), &["linear_log_probs", "1 targets"]);
    fails(swiglu(&t(2, 3), &t(3, 2)), &["swiglu", "[2, 3]", "[3, 2]"]);
    fails(geglu(&t(2, 3), &t(2, 4)), &["geglu", "[2, 3]", "[2, 4]"]);
    fails(add_bias(&t(2, 3), &v(2)), &["add_bias", "[2, 3]", "[2]"]);
    fails(linear(&Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap(), &t(4, 3)), &["linear", "[0, 3]"]);
    let doubles = t(2, 3).to_dtype(DType::F64).unwrap();
    fails(linear(&doubles, &t(4, 3)), &["linear", "x is F64", "f32"]);
}

#[test]
fn attention_rejects_what_does_not_fit() {
    let shape = |heads, kv_heads, lengths: &[usize]| {
        AttentionShape::causal(heads, kv_heads, 2, Segments::from_lengths(lengths).unwrap())
    };
    fails(attention(&t(5, 8), &t(5, 4), &t(5, 4), &shape(4, 3, &[5])), &["attention", "4 heads", "3 key/value"]);
    fails(attention(&t(5, 8), &t(5, 4), &t(5, 4), &shape(4, 2, &[4])), &["attention", "[5, 8]", "(4, 8)"]);
    fails(attention(&t(5, 8), &t(5, 4), &t(5, 2), &shape(4, 2, &[5])), &["attention", "[5, 2]", "(5, 4)"]);
    let odd = |change: &dyn Fn(&mut AttentionShape)| {
        let mut shape = shape(4, 2, &[5]);
        change(&mut shape);
        attention(&t(5, 8), &t(5, 4), &t(5, 4), &shape)
    };
    fails(odd(&|s| s.window = Some(0)), &["attention", "window", "at least 1"]);
    fails(odd(&|s| (s.window, s.causal) = (Some(3), false)), &["attention", "window", "causal"]);
    fails(odd(&|s| s.soft_cap = Some(0.0)), &["attention", "soft cap", "positive"]);
    fails(odd(&|s| s.scale = Some(f32::NAN)), &["attention", "scale of NaN"]);
    fails(Segments::from_lengths(&[3, 0]), &["sequence 1 of 2 is empty"]);
}

#[test]
fn rope_rejects_positions_past_its_table() {
    let table = RopeTable::new(10_000.0, 4, 8).unwrap();
    fails(rope(&t(2, 8), &table, &[0, 8], 4), &["rope", "token 1", "position 8", "ends at 8"]);
    fails(rope(&t(2, 8), &table, &[0], 4), &["rope", "1 positions"]);
    fails(rope(&t(2, 6), &table, &[0, 1], 4), &["rope", "(2, 6)"]);
    fails(rope(&t(2, 6), &table, &[0, 1], 3), &["rope", "head size 3", "turns 4"]);
    fails(RopeTable::new(10_000.0, 1, 8), &["rope"]);
}

#[test]
fn the_loss_rejects_bad_targets_and_denominators() {
    let (x, w) = (t(2, 3), t(5, 3));
    fails(linear_cross_entropy(&x, &w, &[0, 5], 1.0, None), &["linear_cross_entropy", "row 1 is 5", "ends at 5"]);
    fails(linear_cross_entropy(&x, &w, &[0], 1.0, None), &["2 rows", "1 targets"]);
    fails(token_losses(&x, &w, &[0], None), &["token_losses", "1 targets"]);
    fails(linear_cross_entropy(&x, &w, &[0, 1], 1.0, Some(-30.0)), &["linear_cross_entropy", "soft cap of -30"]);
    for denominator in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        fails(linear_cross_entropy(&x, &w, &[0, IGNORE], denominator, None), &["denominator"]);
    }
}

#[test]
fn strided_inputs_give_the_same_bits() {
    let strided = |t: &Tensor| t.t().unwrap().contiguous().unwrap().t().unwrap();
    let (x, w) = (t(6, 4), t(4, 4));
    assert!(!strided(&x).is_contiguous());
    let same = |a: Tensor, b: Tensor| assert_eq!(values(&a), values(&b));
    same(linear(&strided(&x), &strided(&w)).unwrap(), linear(&x, &w).unwrap());
    same(linear_trainable(&strided(&x), &strided(&w)).unwrap(), linear_trainable(&x, &w).unwrap());
    same(rms_norm(&strided(&x), &v(4), 1e-5).unwrap(), rms_norm(&x, &v(4), 1e-5).unwrap());
    same(swiglu(&strided(&x), &strided(&x)).unwrap(), swiglu(&x, &x).unwrap());
    let segments = Segments::from_lengths(&[6]).unwrap();
    let shape = AttentionShape::causal(2, 2, 2, segments);
    same(attention(&strided(&x), &strided(&x), &strided(&x), &shape).unwrap(), attention(&x, &x, &x, &shape).unwrap());
}
