"""How .tflite files are loaded; the lines for Python are tested, the others follow the runtimes' documents."""

LITERT_PYTHON = """
import numpy as np
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter("model.tflite")
interpreter.allocate_tensors()
for one in interpreter.get_input_details():
    example, (scale, zero) = np.zeros(one["shape"]), one["quantization"]  # put your prepared example instead of zeros
    if scale:
        limits = np.iinfo(one["dtype"])
        example = np.clip(np.round(example / scale) + zero, limits.min, limits.max)
    interpreter.set_tensor(one["index"], example.astype(one["dtype"]))
interpreter.invoke()
print([interpreter.get_tensor(one["index"]).shape for one in interpreter.get_output_details()])
"""
LITERT_SIGNATURE = """
import numpy as np
from ai_edge_litert.interpreter import Interpreter

call = Interpreter("model.tflite").get_signature_runner("$name")
zeros = {name: np.zeros(one["shape"], one["dtype"]) for name, one in call.get_input_details().items()}
answers = call(**zeros)  # put your prepared example instead of zeros, as codes where the table has codes
print([answer.shape for answer in answers.values()])
"""
LITERT_CPP = """
#include "tensorflow/lite/interpreter.h"
#include "tensorflow/lite/kernels/register.h"
#include "tensorflow/lite/model.h"

auto model = tflite::FlatBufferModel::BuildFromFile("model.tflite");
std::unique_ptr<tflite::Interpreter> interpreter;
tflite::InterpreterBuilder(*model, tflite::ops::builtin::BuiltinOpResolver())(&interpreter);
interpreter->AllocateTensors();
std::copy(values.begin(), values.end(), interpreter->typed_input_tensor<float>(0));
interpreter->Invoke();
const float *answers = interpreter->typed_output_tensor<float>(0);
"""
LITERT_KOTLIN = """
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.support.common.FileUtil
import java.nio.ByteBuffer
import java.nio.ByteOrder

val interpreter = Interpreter(FileUtil.loadMappedFile(context, "model.tflite"))
val output = ByteBuffer.allocateDirect(interpreter.getOutputTensor(0).numBytes()).order(ByteOrder.nativeOrder())
interpreter.run(input, output)  // a direct ByteBuffer of the values, $shape
"""
LITERT_SWIFT = """
import TensorFlowLite

let interpreter = try Interpreter(modelPath: path)
try interpreter.allocateTensors()
try interpreter.copy(data, toInputAt: 0)  // the bytes of the values, $shape
try interpreter.invoke()
let answers = try interpreter.output(at: 0).data
"""
MICRO_PYTHON = """
import numpy as np
from tflite_micro.python.tflite_micro import runtime

interpreter = runtime.Interpreter.from_file("model.tflite", arena_size=$arena)
one = interpreter.get_input_details(0)
example, scales = np.zeros(one["shape"]), one["quantization_parameters"]["scales"]  # put your example
zeros = one["quantization_parameters"]["zero_points"]
if len(scales):
    limits = np.iinfo(one["dtype"])
    example = np.clip(np.round(example / scales[0]) + zeros[0], limits.min, limits.max)
interpreter.set_input(example.astype(one["dtype"]), 0)
interpreter.invoke()
print(interpreter.get_output(0).shape)
"""
MICRO_CPP = """
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"
#include "model.cc"

alignas(16) static uint8_t arena[$arena];
static tflite::MicroMutableOpResolver<16> operators;  // and operators.AddConv2D() and so on, for each operator
static tflite::MicroInterpreter interpreter(tflite::GetModel(model_tflite), operators, arena, sizeof(arena));
interpreter.AllocateTensors();
memcpy(interpreter.input(0)->data.raw, values, interpreter.input(0)->bytes);  // $shape
interpreter.Invoke();
const void *answers = interpreter.output(0)->data.raw;
"""
LITERT_LOADING = {"python": LITERT_PYTHON, "cpp": LITERT_CPP, "kotlin": LITERT_KOTLIN, "swift": LITERT_SWIFT}
MICRO_LOADING = {"python": MICRO_PYTHON, "cpp": MICRO_CPP}
