// An item's trend over six horizons, as bars of the rate each stands for.

export default {
  template: `
    <table class="ac-curve" data-testid="curve">
      <caption>Weight of interactions per day, as seen over each half-life: rising to the right means more now than before</caption>
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
