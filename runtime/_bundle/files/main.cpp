// Runs the model of this bundle on its samples through ONNX Runtime's C API, and compares the
// outputs with those that are expected. An example to start from, and a test of a build.
//
//   cmake -B build -DONNXRUNTIME_DIR=/path/of/onnxruntime && cmake --build build
//   build/run_bundle ..        the folder of manifest.json
//
// Exit codes: 0 all as expected, 1 failed, 4 the runtime or an output is not as expected.

#include <onnxruntime_c_api.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "bundle.h"

namespace fs = std::filesystem;

static const OrtApi* ort = nullptr;

static void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::string message = ort->GetErrorMessage(status);
  ort->ReleaseStatus(status);
  throw std::runtime_error(message);
}

// ---- arrays in .npy files

struct Type {
  const char* numpy;
  ONNXTensorElementDataType onnx;
  size_t bytes;
};

static const Type kTypes[] = {
    {"<f2", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2},
    {"<f4", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
    {"<f8", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},
    {"|i1", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1},
    {"<i2", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16, 2},
    {"<i4", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},
    {"<i8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},
    {"|u1", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"<u2", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, 2},
    {"<u4", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, 4},
    {"<u8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64, 8},
    {"|b1", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1},
};

struct Array {
  const Type* type = nullptr;
  std::vector<int64_t> shape;
  std::vector<char> data;

  size_t count() const {
    size_t product = 1;
    for (int64_t length : shape) product *= static_cast<size_t>(length);
    return product;
  }
};

// Text of a value in the head of a .npy file: {'descr': '<f4', …, 'shape': (2, 3), }
static std::string value_of(const std::string& head, const std::string& key, char open, char close) {
  size_t place = head.find("'" + key + "'");
  size_t start = place == std::string::npos ? place : head.find(open, place + key.size() + 2);
  size_t end = start == std::string::npos ? start : head.find(close, start + 1);
  if (end == std::string::npos) throw std::runtime_error("not a .npy file");
  return head.substr(start + 1, end - start - 1);
}

static Array read_npy(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < 12 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0)
    throw std::runtime_error(path.string() + " is not a .npy file");
  const unsigned char* raw = reinterpret_cast<const unsigned char*>(bytes.data());
  bool is_first = raw[6] == 1;
  size_t start = is_first ? 10 : 12;
  size_t length = raw[8] | raw[9] << 8;
  if (!is_first) length |= static_cast<size_t>(raw[10]) << 16 | static_cast<size_t>(raw[11]) << 24;
  if (start + length > bytes.size()) throw std::runtime_error(path.string() + " is cut off");
  std::string head(bytes.data() + start, length);
  Array array;
  std::string kind = value_of(head, "descr", '\'', '\'');
  for (const Type& type : kTypes)
    if (kind == type.numpy) array.type = &type;
  if (array.type == nullptr) throw std::runtime_error(path.string() + ": unknown type " + kind);
  std::string dims = value_of(head, "shape", '(', ')');
  for (const char* next = dims.c_str(); *next != '\0';) {
    char* end = nullptr;
    long long dim = std::strtoll(next, &end, 10);
    if (end == next) break;
    array.shape.push_back(dim);
    next = end;
    while (*next == ',' || *next == ' ') ++next;
  }
  array.data.assign(bytes.begin() + start + length, bytes.end());
  if (array.data.size() != array.count() * array.type->bytes)
    throw std::runtime_error(path.string() + " is cut off");
  return array;
}

// ---- outputs beside those that are expected

static double half(uint16_t bits) {
  int exponent = bits >> 10 & 31;
  int mantissa = bits & 1023;
  double value = exponent == 0    ? std::ldexp(mantissa, -24)
                 : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                  : std::ldexp(mantissa + 1024, exponent - 25);
  return bits & 0x8000 ? -value : value;
}

static double number(const char* data, size_t index, ONNXTensorElementDataType type) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    float value;
    std::memcpy(&value, data + index * sizeof value, sizeof value);
    return value;
  }
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE) {
    double value;
    std::memcpy(&value, data + index * sizeof value, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, data + index * sizeof bits, sizeof bits);
  return half(bits);
}

static bool is_float(ONNXTensorElementDataType type) {
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ||
         type == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE ||
         type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

// True if an output keeps its limits; prints its figures.
static bool as_expected(const Array& expected, const char* got, const Limits& limits) {
  size_t count = expected.count();
  if (!is_float(expected.type->onnx)) {
    size_t width = expected.type->bytes;
    size_t unequal = 0;
    for (size_t i = 0; i < count; ++i)
      unequal += std::memcmp(expected.data.data() + i * width, got + i * width, width) != 0;
    double share = count ? static_cast<double>(unequal) / count : 0;
    std::printf("  %s: %.3g %% of the elements differ\n", limits.output, 100 * share);
    return share <= limits.unequal;
  }
  double largest = 0, signal = 0, noise = 0;
  for (size_t i = 0; i < count; ++i) {
    double y = number(expected.data.data(), i, expected.type->onnx);
    double z = number(got, i, expected.type->onnx);
    if (y == z || (std::isnan(y) && std::isnan(z))) {
      if (std::isfinite(y)) signal += y * y;
      continue;
    }
    if (!std::isfinite(y) || !std::isfinite(z)) {
      std::printf("  %s: not finite\n", limits.output);
      return false;
    }
    largest = std::fmax(largest, std::fabs(y - z));
    signal += y * y;
    noise += (y - z) * (y - z);
  }
  double sqnr_db = noise > 0 ? 10 * std::log10(signal / noise) : INFINITY;
  std::printf("  %s: off by %.3g, SQNR %.1f dB\n", limits.output, largest, sqnr_db);
  return largest <= limits.atol && (largest <= limits.floor || sqnr_db >= limits.min_sqnr_db);
}

// ---- the model

static OrtValue* tensor_of(Array& array, OrtMemoryInfo* memory) {
  OrtValue* value = nullptr;
  check(ort->CreateTensorWithDataAsOrtValue(memory, array.data.data(), array.data.size(),
                                            array.shape.data(), array.shape.size(),
                                            array.type->onnx, &value));
  return value;
}

static bool same_form(const OrtValue* value, const Array& expected) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort->GetTensorTypeAndShape(value, &info));
  ONNXTensorElementDataType type;
  size_t rank = 0;
  check(ort->GetTensorElementType(info, &type));
  check(ort->GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(ort->GetDimensions(info, shape.data(), rank));
  ort->ReleaseTensorTypeAndShapeInfo(info);
  return type == expected.type->onnx && shape == expected.shape;
}

static bool run_sample(OrtSession* session, OrtMemoryInfo* memory, const fs::path& folder) {
  std::vector<Array> arrays;
  std::vector<OrtValue*> inputs;
  for (size_t i = 0; i < std::size(kInputs); ++i)
    arrays.push_back(read_npy(folder / ("input_" + std::to_string(i) + ".npy")));
  for (Array& array : arrays) inputs.push_back(tensor_of(array, memory));
  std::vector<OrtValue*> outputs(std::size(kOutputs), nullptr);
  auto start = std::chrono::steady_clock::now();
  check(ort->Run(session, nullptr, kInputs, inputs.data(), inputs.size(), kOutputs, outputs.size(),
                 outputs.data()));
  std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
  std::printf("%s: %.2f ms\n", folder.string().c_str(), elapsed.count());
  bool is_good = true;
  for (size_t i = 0; i < outputs.size(); ++i) {
    Array expected = read_npy(folder / ("output_" + std::to_string(i) + ".npy"));
    void* data = nullptr;
    if (!same_form(outputs[i], expected)) {
      std::printf("  %s: another type or shape\n", kLimits[i].output);
      is_good = false;
      continue;
    }
    check(ort->GetTensorMutableData(outputs[i], &data));
    is_good &= as_expected(expected, static_cast<const char*>(data), kLimits[i]);
  }
  for (OrtValue* value : inputs) ort->ReleaseValue(value);
  for (OrtValue* value : outputs) ort->ReleaseValue(value);
  return is_good;
}

static bool is_too_old(const char* version) {
  int major = 0, minor = 0;
  if (std::sscanf(version, "%d.%d", &major, &minor) != 2) return true;
  return major != kLeastMajor ? major < kLeastMajor : minor < kLeastMinor;
}

static int run(const fs::path& bundle) {
  const OrtApiBase* base = OrtGetApiBase();
  const char* version = base->GetVersionString();
  if (is_too_old(version)) {
    std::fprintf(stderr, "error: onnxruntime %s: is too old: the model needs %d.%d\n", version,
                 kLeastMajor, kLeastMinor);
    return 4;
  }
  ort = base->GetApi(ORT_API_VERSION);
  if (ort == nullptr) {
    std::fprintf(stderr, "error: onnxruntime %s: is older than its header, of API %d\n", version,
                 ORT_API_VERSION);
    return 1;
  }
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  OrtMemoryInfo* memory = nullptr;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "bundle", &env));
  check(ort->CreateSessionOptions(&options));
  auto start = std::chrono::steady_clock::now();
  check(ort->CreateSession(env, (bundle / kModel).c_str(), options, &session));
  std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
  std::printf("onnxruntime %s, %s loaded in %.1f ms\n", version, kModel, elapsed.count());
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  bool is_good = true;
  for (size_t number = 0; number < kSamples; ++number)
    is_good &= run_sample(session, memory, bundle / "samples" / std::to_string(number));
  ort->ReleaseMemoryInfo(memory);
  ort->ReleaseSession(session);
  ort->ReleaseSessionOptions(options);
  ort->ReleaseEnv(env);
  std::printf(is_good ? "all as expected\n" : "NOT as expected\n");
  return is_good ? 0 : 4;
}

int main(int count, char** words) {
  try {
    return run(count > 1 ? fs::path(words[1]) : fs::path(".."));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
