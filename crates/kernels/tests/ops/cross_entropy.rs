use crate::harness::{check, close, frozen, noise, trained};
use crate::linear::times;
use candle_core::{Device, Tensor, Var};
use kernels::{IGNORE, linear_cross_entropy, linear_cross_entropy_trainable, linear_log_probs, token_losses};

const TOLERANCE: f64 = 5e-6;

fn naive_losses(x: &[f64], w: &[f64], c: usize, targets: &[u32], cap: Option<f32>) -> Vec<f64> {
    let mut logits = times(x, w, c);
    if let Some(cap) = cap.map(f64::from) {
        logits.iter_mut().for_each(|l| *l = cap * (*l / cap).tanh());
    }
    let row = |(logits, &target): (&[f64], &u32)| match target {
        IGNORE => 0.0,
        target => logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[target as usize],
    };
    logits.chunks(w.len() / c).zip(targets).map(row).collect()
}

/// Every third row ignored, the others spread over the vocabulary.
fn some_targets(n: usize, v: usize) -> Vec<u32> {
    (0..n).map(|i| if i % 3 == 1 { IGNORE } else { ((i * 7 + 3) % v) as u32 }).collect()
}

#[test]
fn the_loss_matches_and_skips_ignored_rows() {
    for (n, c, v, cap) in [
        (1, 1, 1, None),
        (4, 5, 3, None),
        (31, 8, 50, None),
        (130, 16, 33, None),
        (4, 5, 3, Some(3.0)),
        (130, 16, 33, Some(1.5)),
    ] {
        let targets = some_targets(n, v);
        let naive = |x: &[Vec<f64>]| vec![naive_losses(&x[0], &x[1], c, &targets, cap).iter().sum::<f64>() / 37.5];
        let inputs = [trained("x", &[n, c]).around(0.0, 2.0), frozen("w", &[v, c])];
        check(&inputs, TOLERANCE, &|t| linear_cross_entropy(&t[0], &t[1], &targets, 37.5, cap), &naive);
        let inputs = [trained("x", &[n, c]).around(0.0, 2.0), trained("w", &[v, c])];
        check(&inputs, TOLERANCE, &|t| linear_cross_entropy_trainable(&t[0], &t[1], &targets, 37.5, cap), &naive);
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (x, w) = (noise(1, n * c), noise(2, v * c));
        let want = naive_losses(&wide(&x), &wide(&w), c, &targets, cap);
        let tensor = |data, rows| Tensor::from_vec(data, (rows, c), &Device::Cpu).unwrap();
        let got = token_losses(&tensor(x, n), &tensor(w, v), &targets, cap).unwrap();
        close("token losses", &got, &want, TOLERANCE);
    }
}

/// A vocabulary so large that the rows come in several chunks.
#[test]
fn the_loss_matches_over_several_chunks() {
    let (n, c, v) = (40, 2, 300_000);
    let targets = some_targets(n, v);
    let (x, w) = (noise(1, n * c), noise(2, v * c));
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let want = naive_losses(&wide(&x), &wide(&w), c, &targets, None);
    let xv = Var::from_vec(x, (n, c), &Device::Cpu).unwrap();
    let wt = Tensor::from_vec(w, (v, c), &Device::Cpu).unwrap();
    close("token losses", &token_losses(&xv, &wt, &targets, None).unwrap(), &want, TOLERANCE);
    let loss = linear_cross_entropy(&xv, &wt, &targets, 10.0, None).unwrap();
    close("loss", &[loss.to_scalar().unwrap()], &[want.iter().sum::<f64>() / 10.0], TOLERANCE);
    let gradients = loss.backward().unwrap();
    let dx = crate::harness::values(gradients.get(&xv).unwrap());
    for (row, target) in dx.chunks(c).zip(&targets) {
        assert_eq!(row.iter().all(|&g| g == 0.0), *target == IGNORE);
    }
}

#[test]
fn a_batch_without_targets_has_loss_zero_and_gradient_zero() {
    let x = Var::from_vec(noise(1, 12), (4, 3), &Device::Cpu).unwrap();
    let w = Var::from_vec(noise(2, 15), (5, 3), &Device::Cpu).unwrap();
    let loss = linear_cross_entropy_trainable(&x, &w, &[IGNORE; 4], 1.0, None).unwrap();
    assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
    let gradients = loss.backward().unwrap();
    assert_eq!(crate::harness::values(gradients.get(&x).unwrap()), [0.0; 12]);
    assert_eq!(crate::harness::values(gradients.get(&w).unwrap()), [0.0; 15]);
}

#[test]
fn a_broken_activation_makes_the_loss_nan() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = noise(1, 12);
        x[4] = bad;
        let x = Var::from_vec(x, (4, 3), &Device::Cpu).unwrap();
        let w = Tensor::from_vec(noise(2, 60), (20, 3), &Device::Cpu).unwrap();
        let loss = linear_cross_entropy(&x, &w, &[1, 2, 3, 4], 4.0, None).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().is_nan(), "{bad} was swallowed");
    }
}

#[test]
fn log_probabilities_match_and_each_has_its_own_gradient() {
    for (n, c, v, cap) in [(1, 1, 1, None), (4, 5, 3, None), (31, 8, 50, Some(2.5)), (130, 16, 33, None)] {
        let targets = some_targets(n, v);
        let inputs = [trained("x", &[n, c]).around(0.0, 2.0), frozen("w", &[v, c])];
        let naive = |x: &[Vec<f64>]| {
            let logits = times(&x[0], &x[1], c);
            let capped = logits.iter().map(|l| cap.map_or(*l, |cap: f64| cap * (l / cap).tanh())).collect::<Vec<_>>();
            let row = |(logits, &target): (&[f64], &u32)| match target {
                IGNORE => 0.0,
                target => logits[target as usize] - logits.iter().map(|l| l.exp()).sum::<f64>().ln(),
            };
            capped.chunks(v).zip(&targets).map(row).collect()
        };
        check(&inputs, TOLERANCE, &|t| linear_log_probs(&t[0], &t[1], &targets, cap.map(|c| c as f32)), &naive);
    }
}
