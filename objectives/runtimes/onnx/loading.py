"""How .onnx files are loaded; the lines for Python are tested, the others follow ONNX Runtime's documents."""

ONNX_PYTHON = """
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
inputs = {}
for one, shape in zip(session.get_inputs(), $shapes):  # put your prepared example instead of zeros
    kind = one.type.removeprefix("tensor(").removesuffix(")")  # such as uint8
    inputs[one.name] = np.zeros(shape, {"float": "float32", "double": "float64"}.get(kind, kind))
print([output.shape for output in session.run(None, inputs)])
"""
OPENVINO_PYTHON = """
import numpy as np
import openvino

model = openvino.Core().compile_model("model.onnx", "CPU")
inputs = {}
for one, shape in zip(model.inputs, $shapes):  # put your prepared example instead of zeros
    inputs[one.any_name] = np.zeros(shape, one.element_type.to_dtype())
print([output.shape for output in model(inputs).values()])
"""
ONNX_CPP = """
#include <onnxruntime_cxx_api.h>

Ort::Env environment;
Ort::Session session(environment, "model.onnx", Ort::SessionOptions());
std::vector<int64_t> shape{$shape};
auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
auto input = Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());
const char *inputs[] = {"x"}, *outputs[] = {"y"};
auto results = session.Run(Ort::RunOptions(), inputs, &input, 1, outputs, 1);
const float *answers = results[0].GetTensorData<float>();
"""
ONNX_KOTLIN = """
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import java.nio.FloatBuffer

val environment = OrtEnvironment.getEnvironment()
val session = environment.createSession(context.assets.open("model.onnx").readBytes())
val input = OnnxTensor.createTensor(environment, FloatBuffer.wrap(values), longArrayOf($shape))
val answers = session.run(mapOf("x" to input))[0].value
"""
ONNX_SWIFT = """
import OnnxRuntimeBindings

let environment = try ORTEnv(loggingLevel: .warning)
let session = try ORTSession(env: environment, modelPath: path, sessionOptions: nil)
let data = NSMutableData(bytes: values, length: values.count * MemoryLayout<Float>.stride)
let input = try ORTValue(tensorData: data, elementType: .float, shape: [$shape])
let results = try session.run(withInputs: ["x": input], outputNames: ["y"], runOptions: nil)
let answers = try results["y"]!.tensorData()
"""
ONNX_LOADING = {"python": ONNX_PYTHON, "cpp": ONNX_CPP, "kotlin": ONNX_KOTLIN, "swift": ONNX_SWIFT}
OPENVINO_LOADING = {"python": OPENVINO_PYTHON}
