// Build the candidates from the arguments of an operator. Classes ascend, so that the columns of a class are an interval.
#pragma once
#include <optional>

#include "kernels.h"
#include "torch_abi.h"

namespace contrastive {

class CandidateSet {
 public:
  CandidateSet(
      int64_t rows, int64_t columns, const std::vector<int64_t>& omit, const std::optional<Tensor>& row_classes,
      const std::optional<Tensor>& column_classes, bool same)
      : set_{rows, columns, false, 0, {}, nullptr, nullptr, same} {
    for (const int64_t diagonal : omit) set_.omit[set_.omitted++] = diagonal;
    if (!row_classes || !column_classes) return;
    const Tensor row_tensor = as_int64(*row_classes), column_tensor = as_int64(*column_classes);
    const int64_t *of_row = row_tensor.const_data_ptr<int64_t>(), *of_column = column_tensor.const_data_ptr<int64_t>();
    first_.resize(rows);
    last_.resize(rows);
    int64_t first = 0, last = 0;
    for (int64_t i = 0; i < rows; ++i) {
      while (first < columns && of_column[first] < of_row[i]) ++first;
      while (last < columns && of_column[last] <= of_row[i]) ++last;
      first_[i] = static_cast<int32_t>(first);
      last_[i] = static_cast<int32_t>(last);
    }
    set_.first = first_.data();
    set_.last = last_.data();
  }

  CandidateSet(const CandidateSet&) = delete;
  CandidateSet& operator=(const CandidateSet&) = delete;

  const Candidates& get() const { return set_; }

 private:
  static Tensor as_int64(const Tensor& classes) {
    return torch::stable::contiguous(
        classes.scalar_type() == ScalarType::Long ? classes : torch::stable::to(classes, ScalarType::Long));
  }

  Candidates set_;
  std::vector<int32_t> first_, last_;
};

}  // namespace contrastive
