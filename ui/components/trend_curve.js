// The trend of an item: a bar with the rate of each half-life.

export default {
  template: `
    <table class="ac-curve" data-testid="curve">
      <caption>Weighted interactions per day for each half-life; bars that rise to the right mean an increasing rate</caption>
      <tbody><tr><td v-for="row in rows" :key="row.name"><span>{{ short(row.rate) }}</span><i :style="{height: row.height + '%'}"></i></td></tr></tbody>
      <tfoot><tr><th v-for="row in rows" scope="col" :key="row.name">{{ row.name }}</th></tr></tfoot>
    </table>`,
  props: { rows: Array },
  methods: {
    short(rate) {
      return Math.abs(rate) < 0.05 ? "0" : rate.toLocaleString("en", { maximumFractionDigits: Math.abs(rate) < 100 ? 1 : 0 });
    },
  },
};
