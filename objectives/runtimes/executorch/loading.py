"""How .pte files are loaded; the lines for Python are tested, the others follow ExecuTorch's documents."""

DEFAULT_METHOD = "forward"
EXECUTORCH_SIGNATURE = """
import torch
from executorch.runtime import Runtime

method = Runtime.get().load_program("model.pte").load_method("$name")
answers = method.execute([$zeros])  # put your prepared example instead of zeros
print([tuple(answer.shape) for answer in answers])
"""
EXECUTORCH_PYTHON = EXECUTORCH_SIGNATURE.replace("$name", DEFAULT_METHOD)
EXECUTORCH_CPP = """
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
using namespace executorch::extension;

Module module("model.pte");
auto input = from_blob(values.data(), {$shape});
const auto results = module.forward(input);
const float *answers = results->at(0).toTensor().const_data_ptr<float>();
"""
EXECUTORCH_KOTLIN = """
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

val module = Module.load(path)
val input = Tensor.fromBlob(values, longArrayOf($shape))
val answers = module.forward(EValue.from(input))[0].toTensor().dataAsFloatArray
"""
EXECUTORCH_SWIFT = """
import ExecuTorch

let module = Module(filePath: path)
let input = Tensor<Float>(&values, shape: [$shape])
let results = try module.forward(input)
let answers: Tensor<Float>? = results.first?.tensor()
"""
EXECUTORCH_LOADING = {
    "python": EXECUTORCH_PYTHON,
    "cpp": EXECUTORCH_CPP,
    "kotlin": EXECUTORCH_KOTLIN,
    "swift": EXECUTORCH_SWIFT,
}
