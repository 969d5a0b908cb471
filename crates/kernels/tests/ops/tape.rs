use crate::harness::{check, frozen, trained, values};
use candle_core::{Device, Tensor, Var};
use kernels::{add, linear, linear_trainable, record, rms_norm};

/// Recorded ops, candle ops on their results, and an input used in several places.
#[test]
fn ops_of_candle_between_recorded_ones_are_differentiated() {
    let inputs = [trained("x", &[5, 4]), trained("w", &[4, 4]), frozen("v", &[4, 4])];
    let product = |x: &[f64], w: &[f64]| crate::linear::times(x, w, 4);
    let op = |t: &[Tensor]| {
        let y = linear_trainable(&t[0], &t[1])?;
        let z = ((&y * &t[0])? + 0.5)?; // candle's graph over a recorded result and an input
        let z = add(&linear(&z, &t[2])?, &z)?; // z is used twice
        let z = add(&z, &z.narrow(0, 1, 1)?.broadcast_as((5, 4))?)?;
        linear_trainable(&z, &t[1])? + &t[0] // w and x again; the result is candle's
    };
    check(&inputs, 1e-5, &op, &|v| {
        let y = product(&v[0], &v[1]);
        let z: Vec<f64> = y.iter().zip(&v[0]).map(|(y, x)| y * x + 0.5).collect();
        let z: Vec<f64> = product(&z, &v[2]).iter().zip(&z).map(|(a, b)| a + b).collect();
        let z: Vec<f64> = z.iter().enumerate().map(|(i, a)| a + z[4 + i % 4]).collect();
        product(&z, &v[1]).iter().zip(&v[0]).map(|(a, x)| a + x).collect()
    });
}

#[test]
fn a_residual_adds_both_branches() {
    let inputs = [trained("x", &[3, 40_000]), trained("y", &[3, 40_000])];
    check(&inputs, 1e-6, &|t| add(&add(&t[0], &t[1])?, &t[0]), &|v| {
        v[0].iter().zip(&v[1]).map(|(a, b)| 2.0 * a + b).collect()
    });
    let x = Var::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(add(&x, &x.t().unwrap()).is_err());
}

#[test]
fn nothing_is_recorded_outside_or_without_variables() {
    let x = Tensor::ones((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let w = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu).unwrap();
    let (y, tape) = record(|| rms_norm(&x, &w, 1e-6).unwrap());
    assert!(!y.track_op());
    assert!(tape.backward(&y, y.clone()).unwrap().get(&x).is_none());
    let x = Var::from_tensor(&x).unwrap();
    let (_, _tape) = record(|| ());
    let y = rms_norm(&x, &w, 1e-6).unwrap();
    assert_eq!(values(y.backward().unwrap().get(&x).unwrap()).len(), 8);
}
