// Vectors of 32-bit words, with the few operations that compilers do not find by themselves in scalar code (above all the
// upper half of a product). All other arithmetic is the compilers' own on vector types.
#pragma once
#include "arithmetic.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#define MN_HAS_LANES

namespace {

#if defined(__AVX512F__)

template <class Number>
struct Lanes32 {
    typedef uint32_t Unsigned __attribute__((vector_size(64)));
    typedef int32_t Signed __attribute__((vector_size(64)));
    typedef float Float __attribute__((vector_size(64)));
    using Divisor = Reciprocal;
    using Scalar = Number;
    static constexpr int bits = 32, width = 16;

    MN_HD static Unsigned quotient(Unsigned t, const Reciprocal& by) {
        const __m512i twice = (__m512i)(t + t), multiplier = _mm512_set1_epi32(int(by.multiplier));
        const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(twice, multiplier), 32);
        const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(twice, 32), multiplier);
        const __m512i high = _mm512_mask_blend_epi32(0xAAAA, even, odd);
        return (Unsigned)_mm512_srlv_epi32(high, _mm512_set1_epi32(int(by.shift)));
    }
    MN_HD static Float from_integer(Unsigned value) { return (Float)_mm512_cvtepi32_ps((__m512i)value); }
    MN_HD static Unsigned nearest_integer(Float value) { return (Unsigned)_mm512_cvtps_epi32((__m512)value); }
    MN_HD static Float saturated(Float value) {
        const __mmask16 number = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_ORD_Q);
        const __m512 below = _mm512_maskz_min_ps(number, (__m512)value, _mm512_set1_ps(Number::limit));
        return (Float)_mm512_max_ps(below, _mm512_set1_ps(-Number::limit));
    }
    // All ones where saturating changes a value, or it is the limit itself.
    MN_HD static Unsigned beyond(Float value) {
        const __m512 magnitude = _mm512_abs_ps((__m512)value);
        const __mmask16 mask = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(Number::limit), _CMP_NLT_UQ);
        return (Unsigned)_mm512_maskz_set1_epi32(mask, -1);
    }
    MN_HD static void store_around_caches(float* data, Float value) { _mm512_stream_ps(data, (__m512)value); }
    MN_HD static void wait_for_stores() { _mm_sfence(); }
    MN_HD static bool any_negative(Unsigned value) { return _mm512_movepi32_mask((__m512i)value) != 0; }
    MN_HD static Unsigned load_bytes(const uint8_t* bytes) {
        return (Unsigned)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    }
    MN_HD static void store_bytes(uint8_t* bytes, Unsigned value) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtepi32_epi8((__m512i)value));
    }
    MN_HD static Unsigned load_halves(const uint16_t* halves) {
        return (Unsigned)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
    }
    MN_HD static void store_halves(uint16_t* halves, Unsigned value) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(halves), _mm512_cvtepi32_epi16((__m512i)value));
    }
};

#else

template <class Number>
struct Lanes32 {
    typedef uint32_t Unsigned __attribute__((vector_size(32)));
    typedef int32_t Signed __attribute__((vector_size(32)));
    typedef float Float __attribute__((vector_size(32)));
    using Divisor = Reciprocal;
    using Scalar = Number;
    static constexpr int bits = 32, width = 8;

    MN_HD static Unsigned quotient(Unsigned t, const Reciprocal& by) {
        const __m256i twice = (__m256i)(t + t), multiplier = _mm256_set1_epi32(int(by.multiplier));
        const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(twice, multiplier), 32);
        const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(twice, 32), multiplier);
        const __m256i high = _mm256_blend_epi32(even, odd, 0xAA);
        return (Unsigned)_mm256_srlv_epi32(high, _mm256_set1_epi32(int(by.shift)));
    }
    MN_HD static Float from_integer(Unsigned value) { return (Float)_mm256_cvtepi32_ps((__m256i)value); }
    MN_HD static Unsigned nearest_integer(Float value) { return (Unsigned)_mm256_cvtps_epi32((__m256)value); }
    MN_HD static Float saturated(Float value) {
        const __m256 number = _mm256_and_ps((__m256)value, _mm256_cmp_ps((__m256)value, (__m256)value, _CMP_ORD_Q));
        const __m256 below = _mm256_min_ps(number, _mm256_set1_ps(Number::limit));
        return (Float)_mm256_max_ps(below, _mm256_set1_ps(-Number::limit));
    }
    // All ones where saturating changes a value, or it is the limit itself.
    MN_HD static Unsigned beyond(Float value) {
        const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), (__m256)value);
        return (Unsigned)_mm256_cmp_ps(magnitude, _mm256_set1_ps(Number::limit), _CMP_NLT_UQ);
    }
    MN_HD static void store_around_caches(float* data, Float value) { _mm256_stream_ps(data, (__m256)value); }
    MN_HD static void wait_for_stores() { _mm_sfence(); }
    MN_HD static bool any_negative(Unsigned value) { return _mm256_movemask_ps((__m256)value) != 0; }
    MN_HD static Unsigned load_bytes(const uint8_t* bytes) {
        return (Unsigned)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    }
    MN_HD static void store_bytes(uint8_t* bytes, Unsigned value) {
        const __m256i low_bytes = _mm256_set1_epi64x(0x0C080400);  // of each half's four words, to its first four bytes
        const __m256i packed = _mm256_shuffle_epi8((__m256i)value, low_bytes);
        const int32_t halves[2] = {_mm256_cvtsi256_si32(packed), _mm256_extract_epi32(packed, 4)};
        __builtin_memcpy(bytes, halves, sizeof halves);
    }
    MN_HD static Unsigned load_halves(const uint16_t* halves) {
        return (Unsigned)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
    }
    MN_HD static void store_halves(uint16_t* halves, Unsigned value) {
        const __m256i low_halves = _mm256_set1_epi64x(0x0D0C090805040100);  // of each half's four words, to its first 8 bytes
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_shuffle_epi8((__m256i)value, low_halves), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(halves), _mm256_castsi256_si128(packed));
    }
};

#endif

}  // namespace
#endif
