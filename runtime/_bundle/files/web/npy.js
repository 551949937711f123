// Arrays of .npy files, as onnxruntime-web takes and gives them: {type, dims, data}.

// browsers without it hold half floats as their bits, and so does onnxruntime-web
const Half = globalThis.Float16Array ?? Uint16Array;

const KINDS = {
  "<f2": ["float16", Half],
  "<f4": ["float32", Float32Array],
  "<f8": ["float64", Float64Array],
  "|i1": ["int8", Int8Array],
  "<i2": ["int16", Int16Array],
  "<i4": ["int32", Int32Array],
  "<i8": ["int64", BigInt64Array],
  "|u1": ["uint8", Uint8Array],
  "<u2": ["uint16", Uint16Array],
  "<u4": ["uint32", Uint32Array],
  "<u8": ["uint64", BigUint64Array],
  "|b1": ["bool", Uint8Array],
};

// The array in the bytes of a file: version 1.0, C order, as `onnx-opt package` writes it.
export function arrayOf(buffer) {
  const length = new DataView(buffer).getUint16(8, true);
  const start = 10 + length;
  const head = new TextDecoder().decode(new Uint8Array(buffer, 10, length));
  const [, descr] = head.match(/'descr': '([^']+)'/);
  const [, shape] = head.match(/'shape': \(([^)]*)\)/);
  const dims = shape.split(",").filter((dim) => dim.trim()).map(Number);
  const [type, Data] = KINDS[descr];
  return { type, dims, data: new Data(buffer.slice(start)) };
}

// Value of a half float from its bits.
function halfOf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  return sign * (1024 + mantissa) * 2 ** (exponent - 25);
}

// Elements of an array as numbers; integers of 64 bits stay BigInt.
export function valuesOf({ type, data }) {
  const areBits = type === "float16" && data instanceof Uint16Array;
  return areBits ? Array.from(data, halfOf) : Array.from(data);
}
