// Unnormalised probabilities, bit for bit those of the CPU's sampler: f32 operations in its order,
// none of them fused, rounded to whole units of 2^-40. Sums of units are exact, so that their order
// does not matter.
#pragma once

#include "types.cuh"

namespace pageloom {

// e^x for x <= 0: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r and 2^n by its exponent.
__device__ __forceinline__ float exp_nonpositive(float x) {
    constexpr float SMALLEST = -87.0f;
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    constexpr float ROUND = 12582912.0f;
    constexpr float LOG2_E = 1.44269504f;
    constexpr float LN2_HIGH = 0.6933594f;
    constexpr float LN2_LOW = -2.1219444e-4f;
    const float clamped = x > SMALLEST ? x : SMALLEST;
    const float shifted = __fadd_rn(__fmul_rn(clamped, LOG2_E), ROUND);
    const float n = __fsub_rn(shifted, ROUND);
    const float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, LN2_HIGH)), __fmul_rn(n, LN2_LOW));
    float p = __fadd_rn(__fmul_rn(0.008290306f, r), 0.041897975f);
    p = __fadd_rn(__fmul_rn(p, r), 0.16667637f);
    p = __fadd_rn(__fmul_rn(p, r), 0.4999915f);
    p = __fadd_rn(__fmul_rn(p, r), 0.9999997f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    const uint32_t exponent = __float_as_uint(shifted) - __float_as_uint(ROUND) + 127u;
    return __fmul_rn(p, __uint_as_float(exponent << 23));
}

// Between COARSE and its double, the last bit of an f32 is a unit.
constexpr float COARSE = 0x1p-17f;

// A weight of at most 2, as the CPU compares it with min_p, and in units.
struct Weight {
    float value;
    uint64_t units;
};

// Of x, which is the logit's distance from the largest, over the temperature.
__device__ __forceinline__ Weight weight_of(float x) {
    const float e = exp_nonpositive(x);
    const float raised = __fadd_rn(e, COARSE);
    const uint32_t few = __float_as_uint(raised) - __float_as_uint(COARSE);
    if (e < COARSE) return {__fsub_rn(raised, COARSE), few};
    // From COARSE on, the significand counts units or multiples of them.
    const uint32_t bits = __float_as_uint(e);
    const uint32_t significand = (bits & 0x7fffffu) | 0x800000u;
    return {e, uint64_t(significand) << ((bits >> 23) - 110u)};
}

// Weights of a row's tokens.
struct Weights {
    float max;
    float temperature;
    float inverse;

    __device__ __forceinline__ Weights(float max, float temperature)
        : max(max), temperature(temperature), inverse(__frcp_rn(temperature)) {}

    __device__ __forceinline__ Weight operator()(float logit) const {
        const float distance = __fsub_rn(logit, max);
        // At extreme temperatures the remainders below could underflow.
        const bool plain = 0x1p-10f < temperature && temperature < 0x1p10f;
        return weight_of(plain ? divided(distance) : __fdiv_rn(distance, temperature));
    }

    // distance / temperature, rounded to nearest: twice a quotient and the remainder it leaves, of
    // which the second rounds right (Markstein 1990, "Computation of elementary functions on the
    // IBM RISC System/6000 processor", theorem 7). What overflows becomes NaN, and so no weight.
    __device__ __forceinline__ float divided(float distance) const {
        float quotient = __fmul_rn(distance, inverse);
        quotient = __fmaf_rn(__fmaf_rn(-quotient, temperature, distance), inverse, quotient);
        return __fmaf_rn(__fmaf_rn(-quotient, temperature, distance), inverse, quotient);
    }
};

}  // namespace pageloom
