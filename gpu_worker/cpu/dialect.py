"""What the kernels are written in: numba with pointers, a shared work counter, and bfloat16.

Numba has no bfloat16; here it is a 16-bit integer that `load` widens and `store` rounds (to nearest even), so that one
kernel source serves both types. Indexing raw pointers also spares numba's wrap-around checks, which stop vectorisation.
"""

# The functions below are compiled by numba, which infers their types.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = [
    "KERNEL",
    "as_double",
    "bf16_at",
    "exp",
    "f32_at",
    "float_of_bits",
    "i32_at",
    "i64_at",
    "line",
    "load",
    "log",
    "prefetch",
    "store",
    "take",
]

#: Signature of every kernel.
KERNEL = types.void(types.CPointer(types.int64))

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _pointer_cast(element):
    @intrinsic
    def cast(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), generate

    return cast


f32_at = _pointer_cast(types.float32)
bf16_at = _pointer_cast(types.uint16)
i32_at = _pointer_cast(types.int32)
i64_at = _pointer_cast(types.int64)


@intrinsic
def take(typing_context, counter):
    """Add one to counter[0] atomically; the value before. Threads share out work by it."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", arguments[0], ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def load(typing_context, pointer, index):
    """pointer[index] as float32."""

    def generate(context, builder, signature, arguments):
        value = builder.load(builder.gep(arguments[0], [arguments[1]]))
        if signature.args[0].dtype == types.uint16:
            wide = builder.shl(builder.zext(value, _I32), ir.Constant(_I32, 16))
            return builder.bitcast(wide, _F32)
        return value

    return types.float32(pointer, types.int64), generate


@intrinsic
def store(typing_context, pointer, index, value):
    """pointer[index] = value, rounded where the pointer is to bfloat16."""

    def generate(context, builder, signature, arguments):
        target, value = builder.gep(arguments[0], [arguments[1]]), arguments[2]
        if signature.args[0].dtype == types.uint16:
            bits = builder.bitcast(value, _I32)
            odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
            value = builder.trunc(builder.lshr(rounded, ir.Constant(_I32, 16)), _I16)
        builder.store(value, target)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, types.float32), generate


@intrinsic
def prefetch(typing_context, pointer, index):
    """Ask for the cache line of pointer[index]. An address that is not there is no error."""

    def generate(context, builder, signature, arguments):
        name = "llvm.prefetch.p0"
        byte_pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, _I32, _I32, _I32])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), byte_pointer)
        builder.call(function, [address, *(ir.Constant(_I32, x) for x in (0, 3, 1))])  # read, keep, data
        return context.get_dummy_value()

    return types.void(pointer, types.int64), generate


@intrinsic
def line(typing_context, pointer):
    """Elements in a cache line of 64 bytes."""
    elements = 64 * 8 // pointer.dtype.bitwidth

    def generate(context, builder, signature, arguments):
        return ir.Constant(_I64, elements)

    return types.int64(pointer), generate


@intrinsic
def float_of_bits(typing_context, bits):
    """The float32 whose bits an int32 holds."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _F32)

    return types.float32(types.int32), generate


@intrinsic
def _bits_of_float(typing_context, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _I32)

    return types.int32(types.float32), generate


@intrinsic
def as_double(typing_context, bits):
    """The double whose bits an argument carries (`threads.double_bits`)."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@njit(fastmath=True, error_model="numpy", inline="always")
def exp(x):
    """e^x in float32, to 2 units in the last place; 0 below -87, finite above 88. Vectorises, which libm's does not.

    Range reduction and polynomial of Cephes' expf.
    """
    x = min(max(x, np.float32(-87.3)), np.float32(88.3))
    n = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@njit(fastmath=True, error_model="numpy", inline="always")
def log(x):
    """Natural logarithm of a positive normal float32, to 2 units in the last place (polynomial of Cephes' logf)."""
    bits = _bits_of_float(x)
    exponent = np.float32((bits >> np.int32(23)) - np.int32(126))
    m = float_of_bits((bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000))
    small = m < np.float32(0.707106781186547524)
    exponent = exponent - np.float32(1.0) if small else exponent
    m = m + m - np.float32(1.0) if small else m - np.float32(1.0)
    z = m * m
    p = np.float32(7.0376836292e-2)
    p = p * m - np.float32(1.1514610310e-1)
    p = p * m + np.float32(1.1676998740e-1)
    p = p * m - np.float32(1.2420140846e-1)
    p = p * m + np.float32(1.4249322787e-1)
    p = p * m - np.float32(1.6668057665e-1)
    p = p * m + np.float32(2.0000714765e-1)
    p = p * m - np.float32(2.4999993993e-1)
    p = p * m + np.float32(3.3333331174e-1)
    y = m * z * p - exponent * np.float32(2.12194440e-4) - np.float32(0.5) * z
    return m + y + exponent * np.float32(0.693359375)
