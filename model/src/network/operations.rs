//! The network's own tensor operations, each with its derivative.
//!
//! The tensor library reads the machine's number of cores before every product and records a dozen small tensors for the
//! derivative of an activation; on networks of this size that costs more than the arithmetic. These operations run on
//! the calling thread alone, so results cannot depend on any thread pool.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};

/// x W + b: rows x inputs, inputs x outputs, 1 x outputs.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(weight, bias, Linear { learns_x: x.track_op() })
}

/// x W.
pub(super) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(weight, Product { learns: [x.track_op(), weight.track_op()] })
}

/// The smooth gate x * Phi(x), by its usual tanh form.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gelu)
}

/// One step of an LSTM cell: gates (input, forget, cell, output side by side) and the old cell give the new hidden state
/// and the new cell side by side.
pub(super) fn lstm_cell(gates: &Tensor, cell: &Tensor) -> Result<Tensor> {
    gates.contiguous()?.apply_op2(&cell.contiguous()?, LstmCell)
}

/// The numbers of an operand that lies in one piece.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (from, to) = layout.contiguous_offsets().ok_or_else(|| error("operand does not lie in one piece"))?;
    storage.as_slice::<f32>()?.get(from..to).ok_or_else(|| error("operand is shorter than its shape"))
}

fn error(text: &'static str) -> candle_core::Error {
    candle_core::Error::Msg(text.to_owned())
}

/// A tensor's numbers, row by row.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn tensor(values: Vec<f32>, shape: (usize, usize)) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
}

fn view(values: &[f32], shape: (usize, usize)) -> Result<ArrayView2<'_, f32>> {
    ArrayView2::from_shape(shape, values).map_err(candle_core::Error::wrap)
}

/// a b into a new buffer that begins as `start`.
fn multiplied(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, mut start: Vec<f32>) -> Result<Vec<f32>> {
    let shape = (a.nrows(), b.ncols());
    let mut c = ArrayViewMut2::from_shape(shape, &mut start).map_err(candle_core::Error::wrap)?;
    general_mat_mul(1.0, &a, &b, 1.0, &mut c);
    Ok(start)
}

fn forward_product(
    (x, x_layout): (&CpuStorage, &Layout),
    (w, w_layout): (&CpuStorage, &Layout),
    bias: Option<&[f32]>,
) -> Result<(CpuStorage, Shape)> {
    let ((n, k), (inputs, m)) = (x_layout.shape().dims2()?, w_layout.shape().dims2()?);
    if k != inputs || bias.is_some_and(|b| b.len() != m) {
        return Err(error("shapes of a product do not fit"));
    }
    let start = bias.map_or_else(|| vec![0.0; n * m], |b| b.repeat(n));
    let (x, w) = (view(slice(x, x_layout)?, (n, k))?, view(slice(w, w_layout)?, (k, m))?);
    Ok((CpuStorage::F32(multiplied(x, w, start)?), (n, m).into()))
}

/// Derivatives of a product by both factors, each only if asked for.
fn backward_product(x: &Tensor, w: &Tensor, gradient: &[f32], learns: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let ((n, k), m) = (x.dims2()?, w.dim(1)?);
    let g = view(gradient, (n, m))?;
    let by_x = if learns[0] {
        let w = values(w)?;
        Some(tensor(multiplied(g, view(&w, (k, m))?.reversed_axes(), vec![0.0; n * k])?, (n, k))?)
    } else {
        None
    };
    let by_w = if learns[1] {
        let x = values(x)?;
        Some(tensor(multiplied(view(&x, (n, k))?.reversed_axes(), g, vec![0.0; k * m])?, (k, m))?)
    } else {
        None
    };
    Ok([by_x, by_w])
}

struct Linear {
    learns_x: bool,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward_product((x, x_layout), (w, w_layout), Some(slice(b, b_layout)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = values(gradient)?;
        let [by_x, by_w] = backward_product(x, w, &gradient, [self.learns_x, true])?;
        let shape = b.dims2()?;
        let mut by_b = vec![0.0f32; shape.1];
        for row in gradient.chunks_exact(shape.1.max(1)) {
            by_b.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
        }
        Ok((by_x, by_w, Some(tensor(by_b, shape)?)))
    }
}

struct Product {
    learns: [bool; 2],
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward_product((x, x_layout), (w, w_layout), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [by_x, by_w] = backward_product(x, w, &values(gradient)?, self.learns)?;
        Ok((by_x, by_w))
    }
}

/// tanh by a rational function, within 1e-6: a handful of multiplications that the compiler can do side by side.
fn tanh(x: f32) -> f32 {
    let x = x.clamp(-7.9, 7.9);
    let s = x * x;
    let above = ((((((-2.760_768_5e-16 * s + 2.000_188e-13) * s - 8.604_672e-11) * s + 5.122_297e-8) * s
        + 1.485_722_4e-5)
        * s
        + 6.372_619e-4)
        * s
        + 4.893_525e-3)
        * x;
    let below = ((1.198_258_4e-6 * s + 1.185_347_1e-4) * s + 2.268_434_6e-3) * s + 4.893_525e-3;
    above / below
}

fn sigmoid(x: f32) -> f32 {
    0.5 + 0.5 * tanh(0.5 * x)
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let gelu = |x: &f32| 0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * x * (1.0 + CUBE * x * x)));
        Ok((CpuStorage::F32(slice(x, layout)?.iter().map(gelu).collect()), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let slope = |x: f32| {
            let t = tanh(SQRT_2_OVER_PI * x * (1.0 + CUBE * x * x));
            // From 5 on the tanh is flat but for its last digits, which x squared must not make large.
            let x = x.clamp(-5.0, 5.0);
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBE * x * x)
        };
        let by_x = values(x)?.into_iter().zip(values(gradient)?).map(|(x, g)| slope(x) * g).collect();
        Ok(Some(tensor(by_x, x.dims2()?)?))
    }
}

struct LstmCell;

/// The four gates of a unit.
fn gates_of(row: &[f32], unit: usize, units: usize) -> [f32; 4] {
    let raw = [0, 1, 2, 3].map(|k| row.get(k * units + unit).copied().unwrap_or(0.0));
    [sigmoid(raw[0]), sigmoid(raw[1]), tanh(raw[2]), sigmoid(raw[3])]
}

impl CustomOp2 for LstmCell {
    fn name(&self) -> &'static str {
        "lstm-cell"
    }

    fn cpu_fwd(
        &self,
        gates: &CpuStorage,
        gates_layout: &Layout,
        cell: &CpuStorage,
        cell_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, units) = cell_layout.shape().dims2()?;
        if gates_layout.shape().dims2()? != (n, 4 * units) {
            return Err(error("gates of an LSTM cell do not fit its units"));
        }
        let (gates, cells) = (slice(gates, gates_layout)?, slice(cell, cell_layout)?);
        let mut out = vec![0.0f32; n * 2 * units];
        let rows = gates.chunks_exact(4 * units).zip(cells.chunks_exact(units));
        for ((gates, cells), out) in rows.zip(out.chunks_exact_mut(2 * units)) {
            let (hidden, new) = out.split_at_mut(units);
            for (unit, ((hidden, new), old)) in hidden.iter_mut().zip(new).zip(cells).enumerate() {
                let [input, forget, candidate, output] = gates_of(gates, unit, units);
                *new = forget * old + input * candidate;
                *hidden = output * tanh(*new);
            }
        }
        Ok((CpuStorage::F32(out), (n, 2 * units).into()))
    }

    fn bwd(
        &self,
        gates: &Tensor,
        cell: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, units) = cell.dims2()?;
        let (raw, cells, out, gradient) = (values(gates)?, values(cell)?, values(out)?, values(gradient)?);
        let (mut by_gates, mut by_cell) = (vec![0.0f32; n * 4 * units], vec![0.0f32; n * units]);
        let rows = raw.chunks_exact(4 * units).zip(cells.chunks_exact(units));
        let results = out.chunks_exact(2 * units).zip(gradient.chunks_exact(2 * units));
        let targets = by_gates.chunks_exact_mut(4 * units).zip(by_cell.chunks_exact_mut(units));
        for (((gates, cells), (out, gradient)), (by_gates, by_cell)) in rows.zip(results).zip(targets) {
            let (by_hidden, by_new) = gradient.split_at(units);
            let new = out.get(units..).unwrap_or(&[]);
            for (unit, old) in cells.iter().enumerate() {
                let [input, forget, candidate, output] = gates_of(gates, unit, units);
                let squashed = tanh(new[unit]);
                let inner = by_new[unit] + by_hidden[unit] * output * (1.0 - squashed * squashed);
                by_gates[unit] = inner * candidate * input * (1.0 - input);
                by_gates[units + unit] = inner * old * forget * (1.0 - forget);
                by_gates[2 * units + unit] = inner * input * (1.0 - candidate * candidate);
                by_gates[3 * units + unit] = by_hidden[unit] * squashed * output * (1.0 - output);
                by_cell[unit] = inner * forget;
            }
        }
        Ok((Some(tensor(by_gates, (n, 4 * units))?), Some(tensor(by_cell, (n, units))?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_agree_with_the_library() {
        for i in -400..400 {
            let x = i as f32 / 40.0;
            assert!((tanh(x) - x.tanh()).abs() < 2e-6, "{x}");
            assert!((sigmoid(x) - 1.0 / (1.0 + (-x).exp())).abs() < 2e-6, "{x}");
        }
        let x = Tensor::new(&[[-3.0f32, -0.5, 0.0, 0.7, 4.0]], &candle_core::Device::Cpu).unwrap();
        let (own, library) = (values(&gelu(&x).unwrap()).unwrap(), values(&x.gelu().unwrap()).unwrap());
        assert!(own.iter().zip(library).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn products_agree_with_the_library() {
        let numbers = |n: usize| (0..n).map(|i| ((i * 31) % 17) as f32 - 8.0).collect::<Vec<_>>();
        let (x, w, b) = (tensor(numbers(35), (7, 5)), tensor(numbers(15), (5, 3)), tensor(numbers(3), (1, 3)));
        let (x, w, b) = (x.unwrap(), w.unwrap(), b.unwrap());
        let library = x.matmul(&w).unwrap();
        assert_eq!(values(&product(&x, &w).unwrap()).unwrap(), values(&library).unwrap());
        let with_bias = library.broadcast_add(&b).unwrap();
        assert_eq!(values(&linear(&x, &w, &b).unwrap()).unwrap(), values(&with_bias).unwrap());
        assert!(product(&w, &x).is_err());
    }
}
