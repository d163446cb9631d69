//! Tensors as the protocol carries them: a type, a shape, and values in one of two forms.

use foreshard_api::inference::{InferInputTensor, ModelInferRequest};
use std::collections::BTreeMap;
use tonic::Status;

use crate::service::status;

/// The values of an input, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    Texts(Vec<String>),
    Floats(Vec<f64>),
    Integers(Vec<i64>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Values::Texts(values) => values.len(),
            Values::Floats(values) => values.len(),
            Values::Integers(values) => values.len(),
        }
    }
}

/// All inputs of a request by their names.
pub(super) fn inputs(request: &ModelInferRequest) -> Result<BTreeMap<&str, Values>, Status> {
    let raw = &request.raw_input_contents;
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        let why = format!("{} for {} inputs; give one for each, or none", raw.len(), request.inputs.len());
        return Err(status::invalid("raw_input_contents", why));
    }
    let mut inputs = BTreeMap::new();
    for (i, tensor) in request.inputs.iter().enumerate() {
        let values = match raw.get(i) {
            Some(_) if tensor.contents.is_some() => {
                return Err(wrong(tensor, "has contents both of its own and in raw_input_contents"));
            }
            Some(bytes) => from_bytes(tensor, bytes)?,
            None => from_contents(tensor)?,
        };
        if elements(tensor)? != values.len() {
            return Err(wrong(tensor, &format!("has {} values, but the shape {:?}", values.len(), tensor.shape)));
        }
        if inputs.insert(tensor.name.as_str(), values).is_some() {
            return Err(wrong(tensor, "is given twice"));
        }
    }
    Ok(inputs)
}

fn wrong(tensor: &InferInputTensor, what: &str) -> Status {
    let name: String = tensor.name.chars().take(100).collect();
    status::invalid("inputs", format!("{name:?} {what}"))
}

fn elements(tensor: &InferInputTensor) -> Result<usize, Status> {
    let mut sides = tensor.shape.iter().map(|side| usize::try_from(*side).ok());
    let product = sides.try_fold(1usize, |product, side| product.checked_mul(side?));
    product.ok_or_else(|| wrong(tensor, &format!("has no shape that can be: {:?}", tensor.shape)))
}

fn unknown_type(tensor: &InferInputTensor) -> Status {
    let datatype: String = tensor.datatype.chars().take(20).collect();
    wrong(tensor, &format!("has the type {datatype:?}; known are BYTES, FP64, FP32, INT64 and INT32"))
}

fn from_contents(tensor: &InferInputTensor) -> Result<Values, Status> {
    let Some(contents) = &tensor.contents else { return Err(wrong(tensor, "has no contents")) };
    Ok(match tensor.datatype.as_str() {
        "BYTES" => {
            let texts = contents.bytes_contents.iter().map(|bytes| text(tensor, bytes));
            Values::Texts(texts.collect::<Result<_, _>>()?)
        }
        "FP64" => Values::Floats(contents.fp64_contents.clone()),
        "FP32" => Values::Floats(contents.fp32_contents.iter().copied().map(f64::from).collect()),
        "INT64" => Values::Integers(contents.int64_contents.clone()),
        "INT32" => Values::Integers(contents.int_contents.iter().copied().map(i64::from).collect()),
        _ => return Err(unknown_type(tensor)),
    })
}

fn from_bytes(tensor: &InferInputTensor, bytes: &[u8]) -> Result<Values, Status> {
    Ok(match tensor.datatype.as_str() {
        "BYTES" => Values::Texts(texts(tensor, bytes)?),
        "FP64" => Values::Floats(numbers::<8>(tensor, bytes)?.map(f64::from_le_bytes).collect()),
        "FP32" => Values::Floats(numbers::<4>(tensor, bytes)?.map(f32::from_le_bytes).map(f64::from).collect()),
        "INT64" => Values::Integers(numbers::<8>(tensor, bytes)?.map(i64::from_le_bytes).collect()),
        "INT32" => Values::Integers(numbers::<4>(tensor, bytes)?.map(i32::from_le_bytes).map(i64::from).collect()),
        _ => return Err(unknown_type(tensor)),
    })
}

fn numbers<'a, const N: usize>(
    tensor: &InferInputTensor,
    bytes: &'a [u8],
) -> Result<impl Iterator<Item = [u8; N]> + use<'a, N>, Status> {
    let (numbers, rest) = bytes.as_chunks::<N>();
    if rest.is_empty() {
        Ok(numbers.iter().copied())
    } else {
        Err(wrong(tensor, &format!("has {} raw bytes, no multiple of {N}", bytes.len())))
    }
}

/// Each text after its length in four bytes.
fn texts(tensor: &InferInputTensor, mut bytes: &[u8]) -> Result<Vec<String>, Status> {
    let torn = || wrong(tensor, "ends within a text; each one stands after its length in 4 bytes, little-endian");
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(torn)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| torn())?;
        let (one, rest) = rest.split_at_checked(length).ok_or_else(torn)?;
        all.push(text(tensor, one)?);
        bytes = rest;
    }
    Ok(all)
}

fn text(tensor: &InferInputTensor, bytes: &[u8]) -> Result<String, Status> {
    String::from_utf8(bytes.to_vec()).map_err(|_| wrong(tensor, "holds a text that is no UTF-8"))
}

/// Texts in the raw form; `None` if one is longer than its length can say.
pub(super) fn raw_texts<'a>(texts: impl Iterator<Item = &'a str>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for text in texts {
        bytes.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_api::inference::InferTensorContents;
    use proptest::prelude::*;

    fn tensor(datatype: &str, shape: &[i64]) -> InferInputTensor {
        InferInputTensor { name: "x".into(), datatype: datatype.into(), shape: shape.to_vec(), ..Default::default() }
    }

    fn read(datatype: &str, shape: &[i64], raw: &[u8]) -> Result<Values, String> {
        let request = ModelInferRequest {
            inputs: vec![tensor(datatype, shape)],
            raw_input_contents: vec![raw.to_vec()],
            ..Default::default()
        };
        inputs(&request).map(|mut all| all.remove("x").unwrap()).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn both_forms_say_the_same() {
        let raw = raw_texts(["a", "", "é"].into_iter()).unwrap();
        let texts = Values::Texts(["a", "", "é"].map(str::to_owned).to_vec());
        assert_eq!(read("BYTES", &[3], &raw).unwrap(), texts);
        assert_eq!(read("FP32", &[1, 2], &[0, 0, 128, 63, 0, 0, 0, 64]).unwrap(), Values::Floats(vec![1.0, 2.0]));
        assert_eq!(read("INT64", &[1], &(-5i64).to_le_bytes()).unwrap(), Values::Integers(vec![-5]));
        let contents = InferTensorContents {
            bytes_contents: [&b"a"[..], b"", "é".as_bytes()].map(<[u8]>::to_vec).to_vec(),
            ..Default::default()
        };
        let typed = InferInputTensor { contents: Some(contents), ..tensor("BYTES", &[3, 1]) };
        let request = ModelInferRequest { inputs: vec![typed], ..Default::default() };
        assert_eq!(inputs(&request).unwrap()["x"], texts);
    }

    #[test]
    fn each_fault_is_named() {
        for (datatype, shape, raw, told) in [
            ("BYTES", &[1][..], &[5, 0, 0, 0, 1][..], "ends within a text"),
            ("BYTES", &[1], &[1, 0, 0, 0, 0xff], "no UTF-8"),
            ("FP64", &[1], &[0; 7], "no multiple of 8"),
            ("FP64", &[2], &[0; 8], "1 values, but the shape [2]"),
            ("FP64", &[-1], &[0; 8], "no shape that can be"),
            ("FP64", &[i64::MAX, i64::MAX], &[0; 8], "no shape that can be"),
            ("FP16", &[1], &[0; 2], "known are BYTES"),
        ] {
            let error = read(datatype, shape, raw).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
        let twice = ModelInferRequest {
            inputs: vec![tensor("FP64", &[0]), tensor("FP64", &[0])],
            raw_input_contents: vec![vec![], vec![]],
            ..Default::default()
        };
        assert!(inputs(&twice).unwrap_err().message().contains("given twice"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), side in any::<i64>()) {
            for datatype in ["BYTES", "FP64", "FP32", "INT64", "INT32"] {
                _ = read(datatype, &[side], &bytes);
            }
        }
    }
}
