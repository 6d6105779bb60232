/* Self-attention on a CPU and what it says of its tokens, a call each: what madtp.method.attention does step by step.
 *
 * Shapes: B batch, H heads, L tokens, of which F in front stay (MADTP: the class token) and N = L - F are prunable, E
 * width of a head, P and W the length and the width of a head, filled up to whole tiles by zeros.
 */

#include "vectors.h"

enum { BLOCK = 4 * TOGETHER }; /* queries that share what is read of keys and values */
static const float EPSILON = 1e-8f;

/* A sample's keys and values in tiles, and room for a block of its queries. */
typedef struct {
    int64_t heads, length, width, padded, wide;
    float *keys, *values;           /* [H, P / TILE, E, TILE] and [H, W / TILE, L, TILE] */
    float *asked, *weights, *mixed; /* of one head: the queries [BLOCK, E], [BLOCK, P], and the output [BLOCK, W] */
    float *largest, *first;         /* largest weights of any head [BLOCK, P], the class token's weights [H, P] */
} Sequence;

/* Where attention may go, and what is added to its logits: booleans whose samples, heads, queries and keys are `steps`
 * apart, and numbers [B, L]; each NULL if there is none. */
typedef struct {
    const uint8_t *mask;
    const int64_t *steps;
    const float *bias;
} Allowed;

/* A sample without its numbers; `keys` is NULL where there is no memory, and what is to be freed. */
static Sequence sequence_of(int64_t heads, int64_t length, int64_t width)
{
    Sequence own = {.heads = heads, .length = length, .width = width, .padded = in_tiles(length)};
    own.wide = in_tiles(width);
    int64_t of_keys = heads * width * own.padded, of_values = heads * length * own.wide;
    int64_t of_block = BLOCK * (width + 2 * own.padded + own.wide), of_first = heads * own.padded;
    own.keys = calloc(of_keys + of_values + of_block + of_first, sizeof(float));
    own.values = own.keys + of_keys;
    own.asked = own.values + of_values;
    own.weights = own.asked + BLOCK * width;
    own.mixed = own.weights + BLOCK * own.padded;
    own.largest = own.mixed + BLOCK * own.wide;
    own.first = own.largest + BLOCK * own.padded;
    return own;
}

/* Reads keys and values, their heads and tokens `strides` numbers apart. */
static void read(Sequence own, const float *key, const float *value, const int64_t strides[3])
{
    for (int64_t head = 0; head < own.heads; head++)
        for (int64_t token = 0; token < own.length; token++) {
            const float *its_key = key + head * strides[1] + token * strides[2];
            const float *its_value = value + head * strides[1] + token * strides[2];
            float *column = own.keys + (head * own.padded + token / TILE * TILE) * own.width + token % TILE;
            float *row = own.values + (head * own.wide * own.length) + token * TILE;
            for (int64_t channel = 0; channel < own.width; channel++)
                column[channel * TILE] = its_key[channel];
            for (int64_t start = 0; start < own.width; start += TILE) {
                int64_t left = own.width - start;
                memcpy(row + start * own.length, its_value + start, (left < TILE ? left : TILE) * sizeof(float));
            }
        }
}

/* The weights and the output of one head for `count` queries, at most BLOCK, that stand from `token` on, their heads
 * and tokens `strides` apart. */
static void attend_head(
    Sequence own, const float *query, const int64_t strides[3], Allowed allowed, int64_t head, int64_t token,
    int64_t count)
{
    float scale = 1 / sqrtf(own.width);
    for (int64_t one = 0; one < count; one++)
        for (int64_t channel = 0; channel < own.width; channel++)
            own.asked[one * own.width + channel] =
                scale * query[head * strides[1] + (token + one) * strides[2] + channel];
    products(own.asked, own.width, 1, count, own.keys + head * own.padded * own.width, own.width, own.padded,
             own.weights);
    for (int64_t one = 0; one < count; one++) {
        const uint8_t *mask = allowed.mask;
        mask = mask ? mask + head * allowed.steps[1] + (token + one) * allowed.steps[2] : NULL;
        softmax(own.weights + one * own.padded, allowed.bias, mask, mask ? allowed.steps[3] : 0, own.length);
    }
    products(own.weights, own.padded, 1, count, own.values + head * own.wide * own.length, own.length, own.wide,
             own.mixed);
}

/* Attends from a block of queries, as `attend_head`, by all heads.
 *
 * Fills output [count, H, E] and, where `paid` is not NULL, the largest weights of any head and what the class token
 * pays to each query [count], weighted by heads.
 */
static void attend_block(
    Sequence own, const float *query, const int64_t strides[3], Allowed allowed, int64_t token, int64_t count,
    float *output, float *paid)
{
    float total[BLOCK] = {0}, weighted[BLOCK] = {0};
    if (paid)
        memset(own.largest, 0, count * own.padded * sizeof(float));
    for (int64_t head = 0; head < own.heads; head++) {
        attend_head(own, query, strides, allowed, head, token, count);
        if (token == 0)
            memcpy(own.first + head * own.padded, own.weights, own.padded * sizeof(float));
        for (int64_t one = 0; one < count; one++)
            memcpy(output + (one * own.heads + head) * own.width, own.mixed + one * own.wide,
                   own.width * sizeof(float));
        for (int64_t one = 0; paid && one < count; one++) {
            const float *row = own.mixed + one * own.wide;
            float size = sqrtf(dot(row, row, own.width));
            weighted[one] += size * own.first[head * own.padded + token + one];
            total[one] += size;
        }
        for (int64_t place = 0; paid && place < count * own.padded; place++) { /* NaN is larger than all numbers */
            int larger = own.weights[place] > own.largest[place] || own.weights[place] != own.weights[place];
            own.largest[place] = larger ? own.weights[place] : own.largest[place];
        }
    }
    for (int64_t one = 0; paid && one < count; one++)
        paid[one] = weighted[one] / (total[one] + EPSILON);
}

/* What a call is given; see `madtp_attend`. */
typedef struct {
    const float *query, *key, *value;
    const int64_t *strides;
    Allowed allowed;
    int64_t heads, length, width, front;
} Given;

/* Attends from the queries `from` to `to` of one sample and fills their part of its output and of what its class token
 * pays; and, where `sums` is not NULL, what they add to the sums. Returns 0, or 1 where there is no memory. */
static int attend_from(Given given, int64_t from, int64_t to, float *output, float *sums, float *cls_attention)
{
    int64_t front = given.front, tokens = given.length - front, apart = given.heads * given.width;
    Sequence own = sequence_of(given.heads, given.length, given.width);
    float paid[BLOCK];
    if (!own.keys)
        return 1;
    read(own, given.key, given.value, given.strides);
    for (int64_t head = 0; sums && from > 0 && head < own.heads; head++) {
        attend_head(own, given.query, given.strides, given.allowed, head, 0, 1);
        memcpy(own.first + head * own.padded, own.weights, own.padded * sizeof(float));
    }
    for (int64_t token = 0; sums && token < tokens; token++)
        sums[token] = 0;
    for (int64_t token = from; token < to; token += BLOCK) {
        int64_t count = to - token < BLOCK ? to - token : BLOCK;
        attend_block(own, given.query, given.strides, given.allowed, token, count, output + token * apart,
                     sums ? paid : NULL);
        for (int64_t one = token < front ? front - token : 0; sums && one < count; one++) {
            cls_attention[token + one - front] = paid[one];
            for (int64_t other = 0; other < tokens; other++)
                sums[other] += own.largest[one * own.padded + front + other];
        }
    }
    for (int64_t token = 0; !sums && from == 0 && token < tokens; token++) {
        cls_attention[token] = 0;
        for (int64_t head = 0; head < own.heads; head++)
            cls_attention[token] += own.first[head * own.padded + front + token] / own.heads;
    }
    free(own.keys);
    return 0;
}

/* Self-attention with scores, in some threads.
 *
 * query, key and value [B, H, L, E], their samples, heads and tokens `strides` numbers apart; `mask` NULL or booleans
 * whose samples, heads, queries and keys are `steps` apart; `bias` NULL or numbers [B, L] that are added to the logits.
 * The queries of every sample are worked on in `parts`. Fills output [B, L, H, E]; the sums over the prunable queries
 * of the largest weight of any head, those of each part by themselves, [parts, B, N]; and what the class token pays,
 * [B, N], each head weighted by its share in the token's output norm. Where `sums` is NULL, the latter is the plain mean
 * over the heads. Returns 0, or 1 where there is no memory.
 */
int madtp_attend(
    const float *query, const float *key, const float *value, const int64_t strides[3], const uint8_t *mask,
    const int64_t steps[4], const float *bias, int64_t batch, int64_t heads, int64_t length, int64_t width,
    int64_t front, int64_t parts, int64_t threads, float *output, float *sums, float *cls_attention)
{
    int64_t tokens = length - front;
    int failed = 0;
    (void)threads; /* not used where the compiler knows no OpenMP */
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : failed)
    for (int64_t share = 0; share < batch * parts; share++) {
        int64_t sample = share / parts, part = share % parts, start = sample * strides[0];
        Allowed allowed = {mask ? mask + sample * steps[0] : NULL, steps, bias ? bias + sample * length : NULL};
        Given given = {query + start, key + start, value + start, strides, allowed, heads, length, width, front};
        failed |= attend_from(given, part * length / parts, (part + 1) * length / parts,
                              output + sample * length * heads * width,
                              sums ? sums + (part * batch + sample) * tokens : NULL, cls_attention + sample * tokens);
    }
    return failed;
}

/* Whether threads are made use of. */
int madtp_threads(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
