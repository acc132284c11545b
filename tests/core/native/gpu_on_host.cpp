// Runs the kernel bodies of rectangle.cuh and square.cuh on the CPU: the threads of a block are fibers that change places
// only at barriers, in an order that is chosen; a barrier or a guard can be left out, named by its line (of square.cuh
// 1000 + its line).
//
//   gpu_on_host ORDER LINE TYPE QUERIES KEYS DEPTH SCALE OMIT SAME    SAME -1: no classes; KEYS 0: the square form
//
// with numbers on standard input, results on standard output; status 4 if threads stopped at different barriers.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

struct Index {
  unsigned x;
};
static Index threadIdx, blockIdx;

static int left_out = 0;  // line of the barrier or guard that is missing
static bool diverged = false;

static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<char> finished;
static int running = 0;
static int barrier_line = 0;  // at which the running thread stopped

static void synchronise(int line) {
  if (line == left_out) return;
  barrier_line = line;
  swapcontext(&fibers[running], &scheduler);
}

static bool guard(bool condition, int line) { return condition || line == left_out; }

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __host__
#define __syncthreads() synchronise(FIRST_LINE + __LINE__)
#define GUARD(condition) guard((condition), FIRST_LINE + __LINE__)

#define FIRST_LINE 0
#include "rectangle.cuh"
#undef FIRST_LINE
#define FIRST_LINE 1000
#include "square.cuh"

static std::function<void()> body;

static void enter() {
  body();
  finished[running] = 1;
  swapcontext(&fibers[running], &scheduler);
}

// Every block, one after the other: all threads to the next barrier, in the order, until all are done.
static void launch(int64_t rows, const std::string& order, const std::function<void()>& kernel) {
  constexpr int n = contrastive::kThreads, stack = 64 * 1024;
  static std::vector<char> stacks(static_cast<size_t>(n) * stack);
  body = kernel;
  fibers.resize(n);
  std::mt19937 random(1);
  for (int64_t block = 0; block * contrastive::kTile < rows; ++block) {
    blockIdx.x = static_cast<unsigned>(block);
    finished.assign(n, 0);
    for (int t = 0; t < n; ++t) {
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks.data() + static_cast<size_t>(t) * stack;
      fibers[t].uc_stack.ss_size = stack;
      fibers[t].uc_link = nullptr;
      makecontext(&fibers[t], enter, 0);
    }
    std::vector<int> turn(n);
    std::iota(turn.begin(), turn.end(), 0);
    if (order == "reverse") std::reverse(turn.begin(), turn.end());
    while (!std::all_of(finished.begin(), finished.end(), [](char done) { return done; })) {
      if (order == "shuffled") std::shuffle(turn.begin(), turn.end(), random);
      int line = -1;
      for (const int t : turn) {
        if (finished[t]) {
          diverged = true;  // others still go on
          continue;
        }
        running = t;
        threadIdx.x = static_cast<unsigned>(t);
        swapcontext(&scheduler, &fibers[t]);
        const int stopped = finished[t] ? 0 : barrier_line;
        diverged = diverged || (line != -1 && line != stopped);
        line = stopped;
      }
    }
  }
}

// An array that ends where the process may neither read nor write: a step too far is a segmentation fault.
template <class T>
struct Fenced {
  explicit Fenced(int64_t count) : count(count) {
    const size_t page = 4096, bytes = static_cast<size_t>(count) * sizeof(T), pages = (bytes + page - 1) / page, fence = 64;
    char* all = static_cast<char*>(
        mmap(nullptr, (pages + fence) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (all == MAP_FAILED || mprotect(all + pages * page, fence * page, PROT_NONE) != 0) std::exit(5);
    begin = reinterpret_cast<T*>(all + pages * page - bytes);
  }
  T* at() { return begin; }
  int64_t count;
  T* begin;
};

template <class T>
static void read(Fenced<T>& to) {
  for (int64_t i = 0; i < to.count; ++i) {
    double x;
    if (std::scanf("%lf", &x) != 1) std::exit(3);
    to.at()[i] = static_cast<T>(x);
  }
}

template <class T>
static void print(Fenced<T>& from) {
  for (int64_t i = 0; i < from.count; ++i) std::printf("%.17g\n", static_cast<double>(from.at()[i]));
}

template <class T>
static int run(const std::string& order, char** argument) {
  using namespace contrastive;
  const auto number = [&](int n) { return std::atoll(argument[n]); };
  const int64_t queries = number(0), keys = number(1), depth = number(2);
  const double scale = std::atof(argument[3]);
  const bool classes = number(5) >= 0;
  Fenced<T> q(queries * depth), k(keys * depth), dq(queries * depth), dk(keys * depth);
  Fenced<int64_t> q_class(queries), k_class(keys);
  Fenced<double> gradient(queries), lse(queries);
  read(q), read(k), read(gradient);
  if (classes) read(q_class), read(k_class);
  Problem<T> p = {q.at(), k.at(), queries, keys, depth, scale, 0, {}, nullptr, nullptr, number(5) == 1};
  if (std::string(argument[4]) != "none") p.omit[p.omitted++] = number(4);
  if (classes) p.q_class = q_class.at(), p.k_class = k_class.at();
  launch(queries, order, [&] { rows_lse<T, Simt<T>>(p, lse.at()); });
  launch(queries, order, [&] { rows_gradient<T, Simt<T>, true>(p, gradient.at(), lse.at(), dq.at()); });
  launch(keys, order, [&] { rows_gradient<T, Simt<T>, false>(p, gradient.at(), lse.at(), dk.at()); });
  print(lse), print(dq), print(dk);
  return diverged ? 4 : 0;
}

template <class T>
static int run_square(const std::string& order, char** argument) {
  using namespace contrastive;
  const int64_t rows = std::atoll(argument[0]), depth = std::atoll(argument[2]), same = std::atoll(argument[5]);
  Fenced<T> z(rows * depth), dz(rows * depth);
  Fenced<int64_t> classes(rows);
  Fenced<double> gradient(rows), lse(rows);
  read(z), read(gradient);
  if (same >= 0) read(classes);
  Problem<T> p = {z.at(), z.at(), rows, rows, depth, std::atof(argument[3]), 1, {0}, nullptr, nullptr, same == 1};
  if (std::string(argument[4]) != "none") {
    p.omitted = 3;
    p.omit[1] = std::atoll(argument[4]);
    p.omit[2] = -p.omit[1];
  }
  if (same >= 0) p.q_class = p.k_class = classes.at();
  const int64_t rounds = tiles_of(rows);
  for (int64_t r = 0; r < rounds; ++r) launch(rows, order, [&] { square_sums<T, Simt<T>>(p, r, lse.at()); });
  launch(rows, order, [&] { square_logs(rows, lse.at()); });
  for (int64_t r = 0; r < rounds; ++r)
    launch(rows, order, [&] { square_gradient<T, Simt<T>>(p, r, gradient.at(), lse.at(), dz.at()); });
  print(lse), print(dz);
  return diverged ? 4 : 0;
}

int main(int, char** argument) {
  left_out = std::atoi(argument[2]);
  const bool single = std::string(argument[3]) == "float", square = std::atoll(argument[5]) == 0;
  const auto form = square ? (single ? run_square<float> : run_square<double>) : (single ? run<float> : run<double>);
  return form(argument[1], argument + 4);
}
